"""What an operator may set: TOML, overridden by the environment.

A **section** is a table of the file, a **key** one setting in it; ``CRD_SECTION__KEY`` in the environment wins.
"""
