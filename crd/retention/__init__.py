"""Which images are kept, and which are forgotten.

The **rules** of a target say what is wanted (``crd.settings.keep``); a **decision** is what they mean for one image,
with every **reason**.  Nothing here reads a clock, a catalog or an archive.
"""
