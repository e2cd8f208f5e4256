from __future__ import annotations

import os

import pytest

from crd.errors import ImageError
from crd.image.header import Header, current_header
from tests.support.builders import make_header


def test_json_is_what_the_contract_says():
    header = Header(major=2, minor=6, patch=29, rev=1, flags=1, time=0x49D0ECC0, release="2.6.29-rc8-cr",
                    version="#1 Mon Mar 30 12:00:00 EDT 2009", machine="i686")
    assert header.to_json() == {
        "magic": "0x00feed0cc0a2d200", "kernel": "2.6.29", "rev": 1, "flags": 1, "time": 1238428864,
        "release": "2.6.29-rc8-cr", "version": "#1 Mon Mar 30 12:00:00 EDT 2009", "machine": "i686"}


def test_current_header_tells_this_host():
    header = current_header()
    uname = os.uname()
    assert (header.release, header.version, header.machine) == (uname.release, uname.version, uname.machine)
    assert uname.release.startswith(f"{header.major}.{header.minor}")
    assert header.flags == 1


@pytest.mark.parametrize(("release", "numbers"), [
    ("6.18.44-fc-v595", (6, 18, 44)), ("7.0-rc1", (7, 0, 1)), ("6", (6, 0, 0)), ("odd", (0, 0, 0)),
    ("99999.1.2", (65535, 1, 2)),
])
def test_kernel_version_of_any_release(monkeypatch, release, numbers):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "#1", "x86_64")))
    header = current_header()
    assert (header.major, header.minor, header.patch) == numbers
    assert header.to_records()[1].data.startswith(release.encode())


@pytest.mark.parametrize("text", ["x" * 65, "a\0b"])
def test_texts_that_do_not_fit_are_refused(text):
    with pytest.raises(ImageError, match="does not fit"):
        make_header(version=text).to_records()


def test_a_text_of_64_bytes_fits():
    assert make_header(version="x" * 64).to_records()[2].data == b"x" * 64 + b"\0"
