"""Whatever fits its fields comes back as it was, through the codec and through a whole stream."""

from __future__ import annotations

import io
import random
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.errors import ImageCorrupt
from crd.image import fields, objects, profile, records
from crd.image.codec import Record, Struct
from crd.image.framing import FRAME
from crd.image.profile import PAGE_BYTES, Pages, SharedPages
from crd.image.reader import PROFILE_RECORDS, ImageReader
from crd.image.records import String, Tail, Task
from tests.support.builders import make_header, write_image

RANGES = {"U8": (0, 2**8 - 1), "U16": (0, 2**16 - 1), "U32": (0, 2**32 - 1), "U64": (0, 2**64 - 1),
          "S32": (-(2**31), 2**31 - 1), "S64": (-(2**63), 2**63 - 1)}
TEXT = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
KINDS = sorted({kind for module in (records, objects, profile) for kind in vars(module).values()
                if isinstance(kind, type) and issubclass(kind, Record) and kind.record_type},
               key=lambda kind: kind.record_type)


def values(kind: str) -> st.SearchStrategy:
    if kind in RANGES:
        return st.integers(*RANGES[kind])
    if kind == "Text":
        return TEXT
    if kind in {"Bytes", "Rest"}:
        return st.binary(max_size=200)
    if kind == "Bulk":
        return st.binary(max_size=200).map(memoryview)
    if kind.startswith("Items["):
        return st.lists(values(kind[6:-1]), max_size=9)
    return instances(getattr(profile, kind, None) or getattr(objects, kind))


def instances(kind: type[Record | Struct]) -> st.SearchStrategy:
    return st.fixed_dictionaries({name: values(field) for name, field in kind.fields.items()}).map(lambda v: kind(**v))


def test_the_ranges_are_those_of_the_fields():
    for name, (low, high) in RANGES.items():
        hint = get_type_hints(type("Probe", (), {"__annotations__": {"x": getattr(fields, name)}}), include_extras=True)
        code = get_args(hint["x"])[-1].code
        assert (high - low).bit_length() == {"B": 8, "H": 16, "I": 32, "Q": 64, "i": 32, "q": 64}[code]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.record_name)
def test_round_trip(kind):
    @settings(max_examples=40, deadline=None)
    @given(instances(kind))
    def holds(record):
        payload = record.encode()
        found = kind.decode(payload)
        assert found == record
        assert found.encode() == payload

    holds()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.record_name)
def test_any_payload_is_decoded_or_corrupt(kind):
    """What decodes is canonical: it encodes to the same bytes."""
    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=400))
    def holds(payload):
        try:
            record = kind.decode(payload, 5)
        except ImageCorrupt as error:
            assert error.offset == 5  # noqa: PT017  # both outcomes are right
        else:
            assert record.encode() == payload

    holds()


CHECKED_MORE = {Tail, String, Task, Pages, SharedPages, profile.Profile}
STREAMED = [kind for kind in PROFILE_RECORDS.values() if kind not in CHECKED_MORE]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of([instances(kind) for kind in STREAMED]), max_size=12), st.binary(max_size=30))
def test_a_stream_of_any_records_comes_back(written, behind):
    source = io.BytesIO(write_image(written) + behind)
    reader = ImageReader(source)
    assert reader.header == make_header()
    assert list(reader) == written
    assert source.read() == behind


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 3)), min_size=1, max_size=4), st.integers(0, 99))
def test_pages_of_any_runs_come_back(runs, seed):
    data = random.Random(seed).randbytes(sum(pages for _, pages in runs) * PAGE_BYTES)
    record = Pages(pid=7, runs=[profile.PageRun(address=address, pages=pages) for address, pages in runs],
                   data=memoryview(data))
    reader = ImageReader(io.BytesIO(write_image([record])))
    found = next(iter(reader))
    assert found == record
    assert FRAME.size + len(record.encode()) == reader.bytes_read - reader.offset
