"""The commands of ``crd`` that need no daemon: each does its work in its own process and ends."""
