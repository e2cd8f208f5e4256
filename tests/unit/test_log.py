"""Lines of the log: one for each event, whatever names stand in it."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress

import pytest

from crd import log

HOSTILE = 'x" outcome=ok\n<0>forged\r\x1b[31m\u2028 end'


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("crd", logging.WARNING, "", 0, "there is no %s", (HOSTILE,), None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("formatter", [log._Text(), log._Prefixed()])
def test_a_hostile_name_neither_begins_a_line_nor_looks_like_a_key(formatter: logging.Formatter) -> None:
    line = formatter.format(record(event="api.call", object=HOSTILE, uid=7, outcome="catalog.image-not-found"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert line.endswith(" outcome=catalog.image-not-found")
    assert ' event=api.call uid=7 object="x\\" outcome=ok\\\\x0a' in line


def test_json_stays_json() -> None:
    assert json.loads(log._Json().format(record(object=HOSTILE)))["object"] == HOSTILE


def test_a_traceback_keeps_its_lines() -> None:
    made = record()
    with suppress(ZeroDivisionError):
        try:
            _ = 1 / 0
        finally:
            made.exc_info = sys.exc_info()
    lines = log._Prefixed().format(made).split("\n")
    assert len(lines) > 3
    assert all(line.startswith("<4>") for line in lines)
