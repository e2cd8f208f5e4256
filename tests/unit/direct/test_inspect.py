from __future__ import annotations

import json
import re
import struct

import pytest
from click.testing import CliRunner

from crd.direct.inspect import inspect
from crd.errors import ImageError
from crd.image.profile import PROFILE_VERSION, Profile
from tests.support.builders import make_file, make_image, make_records, write_image
from tests.support.linux_cr import GenC
from tests.unit.image.test_self_checkpoint import EXAMPLE


@pytest.fixture
def run(tmp_path):
    def run(image: bytes, *options: str):
        (tmp_path / "image").write_bytes(image)
        return CliRunner().invoke(inspect, [str(tmp_path / "image"), *options])

    return run


def test_a_whole_image(run):
    result = run(make_image())
    assert result.exit_code == 0
    assert "crd (v14-rc2 with crd's profile), little-endian" in result.output
    assert "6.18.0 #1 SMP x86_64" in result.output
    for line in ("  4242  1       4242     4242   4242     worker  running (0)",
                 "  4242  50004000-50008000  rw-p   0       1      /usr/bin/worker",
                 "  4242  7   0o1    -         pipe:[4]"):
        assert line in result.output
    assert re.search(r"^  THREAD +2$", result.output, re.MULTILINE)


def test_every_record_on_request(run):
    result = run(make_image(), "--records")
    assert "  283     1129447425  PROFILE" in result.output
    assert re.search(r"^  267 +2 +HEAD_ARCH +8 +has_fxsr=1 has_xsave=1 xstate_bytes=832$", result.output, re.MULTILINE)
    assert re.search(r"^  \d+ +\d+ +PIPE_DATA +\d+ +objref=4 packet=0 data=68656c6c6f$", result.output, re.MULTILINE)


def test_what_records_of_a_kernel_say(run):
    result = run(EXAMPLE, "--records", "--json")
    records = json.loads(result.output)["records"]
    assert [entry["content"] for entry in records[1:]] == [
        "2.6.29-rc8-cr", "#1 Mon Mar 30 12:00:00 EDT 2009", "i686",
        "state=0 exit_state=0 exit_code=0 exit_signal=17 comm_bytes=16", "self", "magic=0x2d2a0cc0deef00"]
    assert records[0]["content"].startswith("00d2a2c00cedfe00")


def test_json(run):
    result = run(make_image(), "--json")
    value = json.loads(result.output)
    assert value["whole"] is True
    assert value["header"]["magic"] == "0x00feed0cc0a2d200"
    assert [task["pid"] for task in value["tasks"]] == [4242, 4243]
    assert value["records"][5] == {"offset": 283, "type": 0x43520001, "name": "PROFILE", "payload_bytes": 154,
                                   "content": None}


def test_a_broken_image_is_shown_as_far_as_it_goes(run):
    result = run(make_image()[:-5])
    assert result.exit_code == 1
    assert f"no: the image ends at offset {len(make_image()) - 5}" in result.output
    assert "/usr/bin/worker" in result.output


def test_broken_as_json(run):
    result = run(make_image()[:-5], "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["broken"]["end"] == len(make_image()) - 5


def test_standard_input():
    result = CliRunner().invoke(inspect, ["-"], input=make_image())
    assert result.exit_code == 0


def test_no_image_at_all(run):
    result = run(b"#!/bin/sh\necho no image\n")
    assert isinstance(result.exception, ImageError)
    assert "no Linux-CR image" in result.exception.message


def test_names_cannot_command_the_terminal(run):
    records = make_records()
    records[2] = make_file(1, path="/tmp/\x1b[2J\udcff")
    result = run(write_image(records))
    assert "\x1b" not in result.output
    assert "/tmp/\\x1b[2J\\udcff" in result.output


def test_a_missing_file_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(inspect, [str(tmp_path / "none")])
    assert result.exit_code == 2


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_later_version_of_the_profile_is_refused_where_it_is(run, options):
    image = bytearray(make_image())
    at = image.index(struct.pack("<I", Profile.record_type))
    assert struct.unpack_from("<I", image, at + 8)[0] == PROFILE_VERSION
    struct.pack_into("<I", image, at + 8, PROFILE_VERSION + 1)
    result = run(bytes(image), *options)
    assert result.exit_code == 1
    assert f"PROFILE at offset {at} has version {PROFILE_VERSION + 1} of crd's profile, not {PROFILE_VERSION}" in (
        result.output)
    if options:
        broken = json.loads(result.output)["broken"]
        assert (broken["error"], broken["offset"], broken["record"]) == ("image.version-unsupported", at, "PROFILE")


def test_states_are_told_in_words(run):
    result = run(GenC().image())
    assert len(re.findall(r" self  frozen or waiting \(2\)$", result.output, re.MULTILINE)) == 2
    assert re.search(r"^  -    -   -      -         /tmp/in_0$", result.output, re.MULTILINE)
