"""Where images are kept: hashed, compressed, and never half there.

A **store** keeps objects under keys.  An image is one object: a **sink** writes its stream in **frames**, a **source**
reads it back.  The **digest** of an image is the BLAKE3 of its table of frames, which has the BLAKE3 of each as it is
stored: nothing is hashed but what compression has left, and all of it can be checked without decompressing anything.
It is not what b3sum(1) says of the stream, and another level of compression makes another digest.
"""
