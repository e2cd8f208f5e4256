"""What hardly any thread has: told where it cannot be had again, and not disturbed where crd must keep out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crd.errors import TargetUnsupported
from crd.image.codec import Record
from crd.image.profile import LocalDescriptors, Machine
from crd.target import procfs
from tests.engine.images import changed, restarted, taken, taken_with
from tests.engine.programs import compiled
from tests.engine.test_changes import records
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

USER_TIME = 14  # field of stat
BEGINNING_TICKS = 5
"""It takes longer when it no longer makes system calls."""
HANDLES_ITS_CALLS = """
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

static volatile char selector;
static volatile long dispatched;

static void on_call(int number) { dispatched++; selector = 0; (void)number; }

int main(void)
{
    FILE *ready = fopen("ready", "w");

    signal(SIGSYS, on_call);
    if (prctl(59, 1, 0, 0, &selector))
        return 1;
    fclose(ready);
    selector = 1;
    while (!dispatched) /* no call of its own */
        for (volatile long i = 0; i < 100000000 && !dispatched; i++)
            ;
    fclose(fopen("disturbed", "w"));
    for (;;)
        pause();
}
"""


def test_a_thread_whose_calls_go_to_a_handler_is_left_alone(tmp_path: Path) -> None:
    with compiled(tmp_path, HANDLES_ITS_CALLS) as program:
        until("its own work", lambda: procfs.stat(program.pid).field(USER_TIME) > BEGINNING_TICKS)
        for method in ("auto", "copy"):
            with pytest.raises(TargetUnsupported) as refused:
                taken_with(program, method=method)
            [reason] = refused.value.reasons
            assert (reason.code, reason.object) == ("task.dispatch", f"thread {program.pid}")
        program.assert_unharmed()
        assert not (tmp_path / "disturbed").exists()


def test_what_this_machine_does_not_give_is_told(tmp_path: Path) -> None:
    def wish(record: Record) -> None:
        if isinstance(record, Machine):
            record.speculation = [1 << 20]  # no kernel knows such a choice

    with Victim("machine", tmp_path) as victim:
        image = changed(taken(victim), wish)
        notes = restarted(image, victim).notes
        assert f"thread {victim.pid} does not get its choice of speculation" in " ".join(notes)
        victim.assert_unharmed()


def test_a_table_of_segments_is_saved_with_and_without_a_snapshot_child(tmp_path: Path) -> None:
    with Victim("emulator", tmp_path) as victim:
        tables = [records(taken_with(victim, method, method=method)[0], LocalDescriptors)
                  for method in ("snapshot", "copy")]
        assert tables[0] == tables[1] != []
        assert len(tables[0][0].table) == 8 * 4001, "up to the last entry that is used"
        victim.verify()
