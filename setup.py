"""Build the one compiled module, and take the migrations along; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["crd", "crd.*"]), "crd._migrations", "crd._migrations.versions"],
    cffi_modules=["crd/native/ffi_build.py:ffibuilder"],
)
