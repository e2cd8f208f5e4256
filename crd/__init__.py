"""crd: a checkpoint daemon for Linux, a time machine for processes.

The flow, left to right; imports point down::

    checkpoint:  schedule -> target -> engine worker (cffi) -> image stream -> archive -> catalog -> retention
    restart:     crctl -> socket -> queue (catalog) -> restart worker -> archive -> image stream -> engine worker

``crd/daemon/pipeline.py`` shows the whole of it.
"""
