"""Where images are kept: hashed, compressed, and never half there.

A **store** keeps objects under keys.  An image is one object: a **sink** writes its stream in **frames**, a **source**
reads it back.  The **digest** of an image is the BLAKE3 of its stream.
"""
