"""The image format: the record stream that a checkpoint writes and a restart reads; no files, sockets or processes.

An **image** is one stream: a **header** (HEAD and three BUFFER records), **records**, and a **tail**.  Every record
is **framed**: its type, the length of its **payload**, the payload.  **crd's profile** is the set of records and the
order that crd writes (``profile.py``, ``FORMAT.md``); a **generation** is one of the formats that Linux-CR kernels
have written over the years, which crd can inspect (``generations.py``).  **Bulk** records end in raw pages that are
never copied.  A **source** is read from and a **sink** written to; neither is ever sought in.
"""
