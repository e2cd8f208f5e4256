"""Tracers, over a thousand of them, that are killed at random times: nobody but them is hurt."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.native.chaos import inject_once
from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.native.selfcheck import SelfCheck

pytestmark = pytest.mark.root

TIMEOUT_SECONDS = 100


@pytest.mark.parametrize(("mode", "variant", "kills"), [
    ("spin", "getpid", 150),
    ("spin", "output", 150),
    ("spin", "survey", 150),
    ("spin", "snapshot", 200),
    ("block", "getpid", 150),
    ("block", "output", 150),
    ("block", "survey", 150),
    ("block", "snapshot", 200),
])
def test_a_killed_tracer_leaves_the_target_unharmed(selfcheck: Callable[[str], SelfCheck], mode: str, variant: str,
                                                    kills: int) -> None:
    target = selfcheck(mode)
    maps = target.maps()

    driver = subprocess.run([sys.executable, "-m", "tests.native.chaos", str(target.pid), variant, str(kills), "1"],
                            capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    assert (driver.returncode, driver.stderr) == (0, "")
    done = json.loads(driver.stdout)
    assert done["injections"] > 0
    assert done["failed"] == 0, "an injector ended by itself"
    target.goes_on()
    assert target.tracers() == {"TracerPid:\t0"}
    target.await_word("signals", done["sent"])
    if variant == "survey":  # its area stays if the tracer is killed, until the next one comes
        until("another survey", lambda: inject_once(target.pid, variant, random.Random(1)))
    assert target.maps() == maps
    assert target.end() == 0
    assert target.errors() == {}
    assert target.report()["signals"] == done["sent"]
