"""What every command line of crd shares.

A **program** is a group of commands, each imported when it is run; it ends with an **exit status** (``crd.errors``).
Data goes to standard output, as a **table** for people or as one JSON value for programs; an error goes to standard
error, as message and **hint** or as one JSON object.
"""
