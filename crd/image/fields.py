"""The kinds of fields that a record can have, and the steps that encode and decode them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, get_args

if TYPE_CHECKING:
    from crd.image.codec import Fields, Struct

T = TypeVar("T")
BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class _Scalar:
    code: str  # of the struct module


class _Kind:
    """Marks an annotation that is no scalar."""


_BYTES, _TEXT, _ITEMS, _REST, _BULK = (_Kind() for _ in range(5))

U8 = Annotated[int, _Scalar("B")]
U16 = Annotated[int, _Scalar("H")]
U32 = Annotated[int, _Scalar("I")]
U64 = Annotated[int, _Scalar("Q")]
S32 = Annotated[int, _Scalar("i")]
S64 = Annotated[int, _Scalar("q")]
Bytes = Annotated[bytes, _BYTES]
Text = Annotated[str, _TEXT]
"""UTF-8, bytes that are none as lone surrogates (``surrogateescape``); never holds a NUL."""
Items = Annotated[Sequence[T], _ITEMS]
"""Scalars or Structs; given as any sequence, kept as a tuple."""
Rest = Annotated[bytes, _REST]
"""The rest of the payload, copied; only as the last field."""
Bulk = Annotated[memoryview, _BULK]
"""The rest of the payload, not copied: it lives in the reader's buffer.  Only as the last field."""

NO_DATA = memoryview(b"")
_COUNT = struct.Struct("<I")


class MalformedError(ValueError):
    """The payload does not fit the fields, or a value not its field."""


class Step(Protocol):
    """Encodes and decodes one field, or several scalars that follow each other."""

    def encode(self, record: Fields) -> BytesLike:
        """Return the bytes of the fields."""
        ...

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        """Set the fields from the payload at ``position``; return where the next field begins."""
        ...


class Scalars:
    """Scalars that follow each other: one struct layout."""

    def __init__(self, names: Sequence[str], codes: str) -> None:
        self.names = tuple(names)
        self.layout = struct.Struct("<" + codes)

    def encode(self, record: Fields) -> BytesLike:
        """Return the scalars, packed."""
        return self.layout.pack(*[getattr(record, name) for name in self.names])

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        """Set the scalars; ``struct.error`` if the payload is too short."""
        for name, value in zip(self.names, self.layout.unpack_from(payload, position), strict=True):
            setattr(record, name, value)
        return position + self.layout.size


class _CountedBytes:
    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, record: Fields) -> BytesLike:
        value: bytes = getattr(record, self.name)
        return _COUNT.pack(len(value)) + value

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        value, end = _counted(payload, position, 1)
        setattr(record, self.name, value.tobytes())
        return end


class _CountedText:
    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, record: Fields) -> BytesLike:
        value: bytes = getattr(record, self.name).encode("utf-8", "surrogateescape")
        self._refuse_nul(value)
        return _COUNT.pack(len(value)) + value

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        value, end = _counted(payload, position, 1)
        self._refuse_nul(text := value.tobytes())
        setattr(record, self.name, text.decode("utf-8", "surrogateescape"))
        return end

    def _refuse_nul(self, text: bytes) -> None:
        if b"\0" in text:
            raise MalformedError(f"{self.name} holds a NUL")


class _ScalarItems:
    def __init__(self, name: str, code: str) -> None:
        self.name = name
        self.code = code
        self.item_bytes = struct.calcsize("<" + code)

    def encode(self, record: Fields) -> BytesLike:
        items = getattr(record, self.name)
        return _COUNT.pack(len(items)) + struct.pack(f"<{len(items)}{self.code}", *items)

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        value, end = _counted(payload, position, self.item_bytes)
        setattr(record, self.name, struct.unpack(f"<{len(value) // self.item_bytes}{self.code}", value))
        return end


class _StructItems:
    def __init__(self, name: str, kind: type[Struct]) -> None:
        self.name = name
        self.kind = kind

    def encode(self, record: Fields) -> BytesLike:
        items: Sequence[Struct] = getattr(record, self.name)
        return b"".join([_COUNT.pack(len(items)), *[item.encode() for item in items]])

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        value, end = _counted(payload, position, size := self.kind.size())
        starts = range(0, len(value), size)
        setattr(record, self.name, tuple([self.kind.decode_at(value, start) for start in starts]))
        return end


class _Nested:
    def __init__(self, name: str, kind: type[Struct]) -> None:
        self.name = name
        self.kind = kind

    def encode(self, record: Fields) -> BytesLike:
        value: Struct = getattr(record, self.name)
        return value.encode()

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        setattr(record, self.name, self.kind.decode_at(payload, position))
        return position + self.kind.size()


class _Remainder:
    def __init__(self, name: str, *, copied: bool) -> None:
        self.name = name
        self.copied = copied

    def encode(self, record: Fields) -> BytesLike:
        value: BytesLike = getattr(record, self.name)
        return value

    def decode(self, record: Fields, payload: memoryview, position: int) -> int:
        value = payload[position:]
        setattr(record, self.name, value.tobytes() if self.copied else value)
        return len(payload)


def _counted(payload: memoryview, position: int, item_bytes: int) -> tuple[memoryview, int]:
    """Return the bytes of the items counted at ``position``, and where they end."""
    (count,) = _COUNT.unpack_from(payload, position)
    start = position + _COUNT.size
    end = start + count * item_bytes
    if end > len(payload):
        raise MalformedError(f"counts {count} items of {item_bytes} bytes with {len(payload) - start} bytes left")
    return payload[start:end], end


def plan(kinds: dict[str, Any]) -> list[Step]:
    """Return the steps for fields of these annotations, in order; scalars that follow each other make one step."""
    steps: list[Step] = []
    scalars: dict[str, str] = {}

    def flush() -> None:
        if scalars:
            steps.append(Scalars(tuple(scalars), "".join(scalars.values())))
            scalars.clear()

    for name, kind in kinds.items():
        mark = get_args(kind)[-1] if get_args(kind) else kind
        if isinstance(mark, _Scalar):
            scalars[name] = mark.code
        else:
            flush()
            steps.append(_step(name, kind, mark))
    flush()
    return steps


def _step(name: str, kind: Any, mark: Any) -> Step:
    if mark is _BYTES:
        return _CountedBytes(name)
    if mark is _TEXT:
        return _CountedText(name)
    if mark is _REST or mark is _BULK:
        return _Remainder(name, copied=mark is _REST)
    if mark is _ITEMS:
        (item,) = get_args(get_args(kind)[0])
        scalar = get_args(item)[-1] if get_args(item) else None
        return _ScalarItems(name, scalar.code) if isinstance(scalar, _Scalar) else _StructItems(name, item)
    return _Nested(name, kind)


def holds_items(kind: Any) -> bool:
    """Tell whether a field of this annotation is an Items."""
    return get_args(kind)[-1:] == (_ITEMS,)
