"""Build the one compiled module; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["crd/native/ffi_build.py:ffibuilder"])
