"""One call, ``checkpoint`` and its counterpart ``restart``, and who serves it.

An **engine** turns running tasks into an image stream and back: ``userspace`` with ptrace and /proc on any kernel.
A **worker** is the disposable process in which an engine runs for the daemon: it makes one call, or takes a few images
one after the other as long as each leaves nothing behind in it.  The **crid** of an image is given out by one counter a
host.
"""
