"""Stores: what keeps objects under keys, all behind one protocol."""
