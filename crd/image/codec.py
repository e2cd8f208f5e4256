"""Records declared by their annotations, and the bytes they become.

::

    class Pipe(Record, type=0x43520011):
        objref: U32
        data: Bytes

declares a record whose payload is the fields in order: little-endian, without padding.  ``Bytes``, ``Text`` and
``Items`` carry a u32 in front that counts bytes, bytes and items; ``Rest`` and ``Bulk`` take what is left of the
payload.  The plan that encodes and decodes is made once, with the class.
"""

from __future__ import annotations

import errno
import re
import struct
from typing import Any, ClassVar, Self, dataclass_transform, get_type_hints

from crd.errors import ImageCorrupt, ImageError
from crd.image.fields import BytesLike, MalformedError, Scalars, Step, holds_items, plan


@dataclass_transform(kw_only_default=True)
class FieldsMeta(type):
    """Turns the annotations of a class into slots and a plan."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_options: Any) -> FieldsMeta:
        """Make the class with a slot for each field; defaults move out of the way of the slots."""
        names = [field for field, kind in namespace.get("__annotations__", {}).items() if "ClassVar" not in kind]
        defaults = {field: namespace.pop(field) for field in names if field in namespace}
        return super().__new__(cls, name, bases, {**namespace, "__slots__": tuple(names), "defaults": defaults})

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        """Plan the fields; ``type=N`` is the record's number."""
        super().__init__(name, bases, namespace)
        names: tuple[str, ...] = cls.__dict__["__slots__"]
        hints = get_type_hints(cls, include_extras=True) if names else {}
        kinds = {field: hints[field] for field in names}
        cls.fields = {field: namespace["__annotations__"][field] for field in names}
        cls.record_type = options.get("type", 0)
        cls.record_name = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
        cls.steps = tuple(plan(kinds))
        cls.item_fields = tuple(field for field in names if holds_items(kinds[field]))


class Fields(metaclass=FieldsMeta):
    """What Struct and Record have in common: keyword constructor, equality, repr."""

    fields: ClassVar[dict[str, str]]
    record_name: ClassVar[str]
    record_type: ClassVar[int]
    steps: ClassVar[tuple[Step, ...]]
    defaults: ClassVar[dict[str, Any]]
    item_fields: ClassVar[tuple[str, ...]]

    def __init__(self, **values: Any) -> None:
        for name in self.fields:
            try:
                setattr(self, name, values.pop(name) if name in values else self.defaults[name])
            except KeyError:
                raise TypeError(f"{type(self).__name__} needs {name}") from None
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")
        for name in self.item_fields:
            setattr(self, name, tuple(getattr(self, name)))

    def __eq__(self, other: object) -> bool:
        """Compare class and fields."""
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.fields)

    __hash__ = None  # type: ignore[assignment]  # fields may be assigned to

    def __repr__(self) -> str:
        """Show the fields, long bytes by their length."""
        values = (f"{name}={_short(getattr(self, name))}" for name in self.fields)
        return f"{type(self).__name__}({', '.join(values)})"


def _short(value: object) -> str:
    if isinstance(value, bytes | memoryview) and len(value) > 32:
        return f"<{len(value)} bytes>"
    return repr(value.tobytes() if isinstance(value, memoryview) else value)


class Struct(Fields):
    """A group of scalars inside a record: always of the same size."""

    @classmethod
    def size(cls) -> int:
        """Return its bytes."""
        (scalars,) = cls.steps
        assert isinstance(scalars, Scalars), "a Struct has scalars only"  # noqa: S101
        return scalars.layout.size

    def encode(self) -> BytesLike:
        """Return its bytes; ``struct.error`` if a value does not fit."""
        return self.steps[0].encode(self)

    @classmethod
    def decode_at(cls, payload: memoryview, position: int) -> Self:
        """Make one from the bytes at ``position``; ``struct.error`` if they are too few."""
        value = cls.__new__(cls)
        cls.steps[0].decode(value, payload, position)
        return value


class Record(Fields):
    """One framed unit of an image; ``record_type`` is its number, ``record_name`` what FORMAT.md calls it."""

    def encode(self) -> bytes:
        """Return the payload.

        Raises:
            ImageError: a value does not fit its field.
        """
        try:
            return b"".join([step.encode(self) for step in self.steps])
        except (struct.error, UnicodeEncodeError, MalformedError) as error:
            raise ImageError(f"a {self.record_name} record cannot hold its values: {error}",
                             record=self.record_name) from error

    @classmethod
    def decode(cls, payload: BytesLike, offset: int = 0) -> Self:
        """Make a record from the whole of a payload.

        Args:
            payload: what follows the frame; a Bulk field goes on referring to it.
            offset: where the record starts in the stream, for errors.

        Raises:
            ImageCorrupt: the payload is not exactly these fields.
        """
        record = cls.__new__(cls)
        view = memoryview(payload)
        position = 0
        try:
            for step in cls.steps:
                position = step.decode(record, view, position)
        except struct.error:
            raise corrupt("is too short", offset, cls.record_name) from None
        except MalformedError as error:
            raise corrupt(str(error), offset, cls.record_name) from None
        if position != len(view):
            raise corrupt(f"has {len(view) - position} bytes too many", offset, cls.record_name)
        return record


def corrupt(what: str, offset: int, record: str) -> ImageCorrupt:
    """Return the error for a record that is not what it must be (EINVAL, as Linux-CR says it)."""
    return ImageCorrupt(f"{record} at offset {offset} {what}", offset=offset, record=record, errno=errno.EINVAL)
