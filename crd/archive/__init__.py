"""Where images are kept: every image whole, each costing only what changed, and never half there.

A **store** keeps objects under keys; it may seal them, or be far away behind a **spool**, and shared by several
daemons, each of which writes into a part that it holds by a **lease**.

An image is a small object, a **manifest** (``manifest.py``): what of its stream is no page, and where each page is.
Pages are in **packs** (``pack.py``): each image brings one with the pages that no pack of its base has yet.  So images
share pages, and none depends on another: a pack stays for as long as any image needs it (``references.py``), whichever
are forgotten.  Who needs what is in a file that can be made anew from the manifests (``needs.py``).

A **sink** takes a stream in, a **source** reads it back.  A stream may tell only what has changed since an image that
it **follows** (``followed.py``); what is kept of it is whole all the same.  The **digest** of an image covers every
byte that is read for it; it is not what b3sum(1) says of its stream.
"""
