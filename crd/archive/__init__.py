"""Where images are kept: every image whole, each costing only what changed, and never half there.

A **store** keeps objects under keys; it may seal them, or be far away behind a **spool**, and shared by several
daemons, each of which writes into a part that it holds by a **lease**.

An image is a small object, a **manifest** (``manifest.py``): what of its stream is no page, and where each page is.
Pages are in **packs** (``pack.py``): each image brings one with the pages that no pack of its base has yet.  So images
share pages, and none depends on another: a pack stays for as long as any image needs it (``references.py``), whichever
are forgotten.

A **sink** takes a stream in, a **source** reads it back.  A stream that **follows** an image, its **base**, tells only
what has changed since then (``base.py``); what is kept of it is a whole image like any other.  The **digest** of an
image says the same of equal streams however they are stored; it is not what b3sum(1) says of them.
"""
