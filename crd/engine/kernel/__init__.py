"""The kernel engine: the system calls of a Linux-CR kernel itself, by number.

A **release** of the patches has its own numbers on each **architecture** (``table.py``).  A **proof** is something that
only a kernel with the calls has, or an operator's word (``proof.py``): without one no number is ever tried, since
mainline has given all of them to other calls.  The **guardian** is a process that undoes what must not outlive a
worker: it thaws what was frozen, and ends tasks that were never restored, however the worker ends.
"""
