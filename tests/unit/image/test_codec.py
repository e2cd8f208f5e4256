from __future__ import annotations

import errno

import pytest

from crd.errors import ImageCorrupt, ImageError
from crd.image.codec import Record, Struct
from crd.image.fields import (
    NO_DATA,
    S32,
    U8,
    U16,
    U64,
    Bulk,
    Bytes,
    Items,
    Rest,
    Text,
)


class Point(Struct):
    x: S32
    y: U8


class Everything(Record, type=0x77):
    small: U8
    wide: U64
    name: Text
    blob: Bytes
    numbers: Items[U16]
    points: Items[Point]
    middle: Point
    last: U8 = 9


class Loose(Record, type=0x78):
    first: U8
    rest: Rest


class Heavy(Record, type=0x79):
    first: U8
    data: Bulk = NO_DATA


def everything(**values) -> Everything:
    return Everything(**{"small": 1, "wide": 2, "name": "ab", "blob": b"c", "numbers": [3, 4],
                         "points": [Point(x=-1, y=5)], "middle": Point(x=6, y=7), **values})


def test_bytes_are_little_endian_unaligned_and_counted():
    assert everything().encode().hex(" ") == (
        "01 02 00 00 00 00 00 00 00 02 00 00 00 61 62 01 00 00 00 63 02 00 00 00 03 00 04 00 "
        "01 00 00 00 ff ff ff ff 05 06 00 00 00 07 09")


def test_decodes_what_it_encoded():
    record = everything()
    assert Everything.decode(record.encode()) == record
    assert Everything.decode(memoryview(record.encode())).points == (Point(x=-1, y=5),)


def test_names_and_numbers():
    assert (Everything.record_type, Everything.record_name) == (0x77, "EVERYTHING")
    assert Everything.fields["points"] == "Items[Point]"
    assert everything().last == 9


def test_constructor_refuses_missing_and_unknown_fields():
    with pytest.raises(TypeError, match="needs rest"):
        Loose(first=1)
    with pytest.raises(TypeError, match="has no third"):
        Loose(first=1, rest=b"", third=3)


def test_fields_are_slots():
    with pytest.raises(AttributeError):
        everything().unknown = 1


def test_equality_and_repr():
    assert everything() == everything(numbers=(3, 4))
    assert everything() != everything(small=2)
    assert Point(x=1, y=2) != (1, 2)
    assert repr(Point(x=1, y=2)) == "Point(x=1, y=2)"
    assert repr(Loose(first=1, rest=bytes(4096))) == "Loose(first=1, rest=<4096 bytes>)"


def test_text_keeps_bytes_that_are_no_utf8():
    record = everything(name="\udcff\udc80/ä")
    assert Everything.decode(record.encode()) == record


def test_bulk_data_is_not_copied():
    payload = bytearray(b"\x01pages")
    record = Heavy.decode(payload)
    payload[1:] = b"PAGES"
    assert record.data.tobytes() == b"PAGES"
    assert Heavy(first=1).encode() == b"\x01"


def test_rest_may_be_empty():
    assert Loose.decode(b"\x01") == Loose(first=1, rest=b"")


@pytest.mark.parametrize("values", [
    {"small": 256}, {"small": -1}, {"wide": 1 << 64}, {"name": "a\0b"}, {"name": "\ud800"}, {"numbers": [1 << 16]},
    {"middle": Point(x=1 << 31, y=0)}, {"small": "1"},
])
def test_encode_refuses_values_that_do_not_fit(values):
    with pytest.raises(ImageError, match="EVERYTHING") as caught:
        everything(**values).encode()
    assert caught.value.record == "EVERYTHING"


def test_every_prefix_and_every_extension_is_corrupt():
    payload = everything().encode()
    for n_bytes in range(len(payload)):
        with pytest.raises(ImageCorrupt) as caught:
            Everything.decode(payload[:n_bytes], offset=1000)
        assert (caught.value.offset, caught.value.record) == (1000, "EVERYTHING")
        assert caught.value.details["errno"] == errno.EINVAL
    with pytest.raises(ImageCorrupt, match="1 bytes too many"):
        Everything.decode(payload + b"\0")


def test_hostile_counts_are_refused_before_anything_is_made():
    payload = bytearray(everything().encode())
    payload[9:13] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageCorrupt, match="counts 4294967295 items"):
        Everything.decode(payload)


def test_a_nul_in_text_is_corrupt():
    payload = everything().encode().replace(b"ab", b"a\0")
    with pytest.raises(ImageCorrupt, match="name holds a NUL"):
        Everything.decode(payload)
