"""What there is to checkpoint; reads ``/proc`` and never traces.

A **target** is the configured thing to save (a unit, a control group, a pid file, a pid, a command name); **selecting**
it gives a process.  An **obstacle** is something that keeps a process from being checkpointed; **preflight** finds them
all and stops nobody.
"""
