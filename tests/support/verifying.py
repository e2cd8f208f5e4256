"""Images that break one rule, and what is said of them."""

from __future__ import annotations

import io
from copy import copy

import pytest

from crd.errors import ImageCorrupt
from crd.image.profile import SharedPages
from crd.image.reader import ImageReader
from crd.image.verify import verified
from tests.support.builders import PID, make_process_records, make_profile, make_records, write_image


def verify(records) -> None:
    for _ in verified(ImageReader(io.BytesIO(write_image(records)))):
        pass


def refused(records) -> ImageCorrupt:
    with pytest.raises(ImageCorrupt) as caught:
        verify(records)
    return caught.value


def with_second_process(**values) -> list:
    """The sample with a second process in front of the memory."""
    records = make_records()
    records[1] = make_profile(processes=2, threads=3)
    memory = next(index for index, record in enumerate(records) if isinstance(record, SharedPages))
    return records[:memory] + make_process_records(PID + 5, parent_pid=PID, **values) + records[memory:]


def changed(kind: type, number: int = 0, /, **values) -> list:
    """The sample, with fields of the ``number``-th record of a kind changed."""
    records = make_records()
    index = [index for index, record in enumerate(records) if type(record) is kind][number]
    record = copy(records[index])
    for name, value in values.items():
        setattr(record, name, value)
    records[index] = record
    return records
