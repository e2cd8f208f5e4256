"""The types of Varlink's interface language, and whether a JSON value is of one.

Source: https://varlink.org/Interface-Definition.  Each kind's ``check`` returns the value as handlers see it: optional
fields that were left out are there, as None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from crd.api.protocol import ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

INT_MAX = 2**63 - 1


class Kind(Protocol):
    """A type of the interface language."""

    def check(self, value: Any, where: str) -> Any:
        """Return ``value``, which was found at ``where``.

        Raises:
            ServiceError: InvalidParameter, naming where.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scalar:
    """``bool``, ``int`` (64 bits, signed), ``float`` (an int will do), ``string`` (without NUL) or ``object``."""

    name: str

    def check(self, value: Any, where: str) -> Any:
        """Return a value of this type."""
        if not _SCALARS[self.name](value):
            raise ServiceError.invalid_parameter(where)
        return value


_SCALARS = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and -INT_MAX - 1 <= value <= INT_MAX,
    "float": lambda value: type(value) in {int, float},
    "string": lambda value: isinstance(value, str) and "\0" not in value,
    "object": lambda value: isinstance(value, dict),
}
SCALARS = frozenset(_SCALARS)


@dataclass(frozen=True, slots=True)
class Enumeration:
    """``(one, two)``: a string out of a few."""

    names: tuple[str, ...]

    def check(self, value: Any, where: str) -> Any:
        """Return one of the names."""
        if not isinstance(value, str) or value not in self.names:
            raise ServiceError.invalid_parameter(where)
        return value


@dataclass(frozen=True, slots=True)
class Maybe:
    """``?type``: may be null or left out."""

    of: Kind

    def check(self, value: Any, where: str) -> Any:
        """Return None or a value of the type."""
        return None if value is None else self.of.check(value, where)


@dataclass(frozen=True, slots=True)
class Array:
    """``[]type``."""

    of: Kind

    def check(self, value: Any, where: str) -> Any:
        """Return a list of values of the type."""
        if not isinstance(value, list):
            raise ServiceError.invalid_parameter(where)
        return [self.of.check(item, f"{where}[{index}]") for index, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Map:
    """``[string]type``."""

    of: Kind

    def check(self, value: Any, where: str) -> Any:
        """Return a dict of strings to values of the type."""
        if not isinstance(value, dict):
            raise ServiceError.invalid_parameter(where)
        return {key: self.of.check(item, f"{where}[{key}]") for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class Struct:
    """``(name: type, ...)``: these fields and no others."""

    fields: Mapping[str, Kind]

    def check(self, value: Any, where: str = "") -> Any:
        """Return a dict that has every field."""
        if not isinstance(value, dict):
            raise ServiceError.invalid_parameter(where)
        prefix = f"{where}." if where else ""
        for unknown in value.keys() - self.fields.keys():
            raise ServiceError.invalid_parameter(prefix + unknown)
        return {name: kind.check(value.get(name), prefix + name) for name, kind in self.fields.items()}


@dataclass(frozen=True, slots=True)
class Named:
    """A type of the interface, by its name."""

    name: str
    types: Mapping[str, Kind]

    def check(self, value: Any, where: str) -> Any:
        """Return a value of that type."""
        return self.types[self.name].check(value, where)
