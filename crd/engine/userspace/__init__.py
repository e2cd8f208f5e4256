"""sys_checkpoint for mainline kernels, from user space.

**Freezing** stops all threads of a target, **thawing** lets them go; **stop time** lies between.  A **snapshot child**
is the copy-on-write copy of the target whose memory is read while the target runs on.  A **plan** is what an image's
small records say is to be made; a **vessel** becomes the restarted task.  One module a kernel object: ``dump`` takes it
from the target, ``restart`` makes it again.
"""
