"""Memory: the layout of an address space, and its pages."""
