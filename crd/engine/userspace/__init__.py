"""sys_checkpoint for mainline kernels, from user space.

A target is a **tree**: a process and its descendants.  **Freezing** stops all its threads, **thawing** lets them go; **stop time** lies between.  A **snapshot child**
is the copy-on-write copy of the target whose memory is read while the target runs on.  A **plan** is what an image's
small records say is to be made; a **vessel** becomes a restarted process, the
**skeleton** is the vessels of a tree with their numbers, sessions and groups.  One module a kernel object: ``dump`` takes it
from the target, ``restart`` makes it again.
"""
