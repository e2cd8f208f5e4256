"""FORMAT.md says what the code does: the tables are the declared records, the examples decode."""

from __future__ import annotations

import io
import re
from pathlib import Path

import crd.image
from crd.image import journal, objects, owner, posix_queue, profile, records, since, sockets, sysv
from crd.image.codec import Record, Struct
from crd.image.framing import FRAME, FrameReader
from crd.image.header import read_header
from crd.image.objects import Pipe, PipeData
from tests.support.builders import make_header, make_image

DOCUMENT = (Path(crd.image.__path__[0]) / "FORMAT.md").read_text()
SECTIONS = re.split(r"^### ", DOCUMENT, flags=re.MULTILINE)[1:]


def declared() -> dict[str, dict[str, str]]:
    """Title of every record and group, and its fields."""
    modules = records, objects, owner, journal, posix_queue, profile, sockets, sysv
    kinds = [kind for module in modules for kind in vars(module).values()
             if isinstance(kind, type) and issubclass(kind, Record | Struct) and kind.__module__ == module.__name__]
    return {_title(kind): kind.fields for kind in kinds}


def _title(kind: type[Record | Struct]) -> str:
    if issubclass(kind, Struct):
        return kind.__name__
    own = kind.record_type >= profile.RECORD_TYPE_FIRST
    return f"{kind.record_name} 0x{kind.record_type:x}" if own else f"{kind.record_name} {kind.record_type}"


def test_the_tables_are_the_declared_records():
    documented = {section.splitlines()[0]: dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
                  for section in SECTIONS}
    assert documented == declared()
    assert {title: list(fields) for title, fields in documented.items()} == {
        title: list(fields) for title, fields in declared().items()}


def test_every_record_has_a_number_of_its_own():
    modules = records, profile, objects, posix_queue, since, sockets, sysv
    kinds = {kind for module in modules for kind in vars(module).values()
             if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record}
    numbers = [kind.record_type for kind in kinds]
    assert len(set(numbers)) == len(numbers)


def test_version_and_bounds():
    assert f"version {profile.PROFILE_VERSION}\n" in DOCUMENT.splitlines(keepends=True)[0]
    assert "at most 1 MiB + 64 KiB" in DOCUMENT
    assert f"1 to {profile.PAGES_PER_RECORD_MAX} pages" in DOCUMENT


def _example(title: str) -> bytes:
    block = DOCUMENT.split(title)[1].split("```")[1]
    return b"".join(bytes.fromhex(line[:23].strip()) for line in block.strip().splitlines())


def test_the_pipe_example_decodes():
    data = _example("A pipe with five bytes")
    kind, length = FRAME.unpack_from(data)
    assert kind == Pipe.record_type
    assert Pipe.decode(data[8:8 + length]) == Pipe(
        objref=4, inode=99, capacity_bytes=65536, data_bytes=5, path="", device=14, mode=0o600, deleted=0)
    kind, _ = FRAME.unpack_from(data, 8 + length)
    assert kind == PipeData.record_type
    assert PipeData.decode(data[16 + length:]) == PipeData(objref=4, packet=0, data=b"hello")


def test_the_header_example_is_the_front_of_an_image():
    example = _example("The front of an image")
    image = make_image()
    assert image.startswith(example[:16])
    header, _ = read_header(FrameReader(io.BytesIO(example + image[len(example):])))
    assert header == make_header(patch=0)
