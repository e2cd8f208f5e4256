"""``crctl``: asks the daemon over its socket and shows what it says.

A **command** is one module, ``cmd_<verb>``; all it knows it has from the daemon, so that ``crctl`` starts quickly
and works without privileges.
"""
