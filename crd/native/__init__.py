"""The only package that touches C.

A **tracee** is a thread that this process has seized, a **stop** what ``waitpid`` says of it, a **run** a stretch of
another process's memory.  A **stub** is machine code that a live target executes for us and comes home from by itself,
its **room** the unused end of a page of the target's code; a **batch** is a table of system calls that a process of our
own executes; a **vessel** is the almost empty process that becomes a restarted task.
"""
