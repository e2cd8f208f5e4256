"""sys_checkpoint for mainline kernels, from user space.

A target is a **tree**: a process and its descendants.  **Freezing** stops all threads of it, **thawing** lets them go;
**stop time** lies between.  A **snapshot child** is the copy-on-write copy of a process whose memory is read while that
runs on.  A **plan** is what an image's small records say is to be made; a **vessel** becomes a restarted process, and
the **skeleton** is all vessels with their numbers, sessions and groups.  One module a kernel object: ``dump`` takes it
from the target, ``restart`` makes it again.
"""
