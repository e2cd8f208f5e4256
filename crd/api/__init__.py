"""The control socket: Varlink, interface ``io.crd``.

A **call** names a method and its parameters, a **reply** answers it; with ``more`` there are several replies, all but
the last marked ``continues``.  The **interface** (``io.crd.varlink``) says which methods there are and what they take;
a **kind** is one of its types.  A **peer** is whoever is at the other end, as the kernel knows it.
"""
