"""What there is to checkpoint; reads ``/proc`` and never traces.

A **target** is the configured thing to save (a pid, a pid file, a command name); **selecting** it gives a pid.  An
**obstacle** is something that keeps a process from being checkpointed; **preflight** finds them all and stops nobody.
"""
