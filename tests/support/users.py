"""Other users than root: what they may call, read and run."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crd.api.client import Client
from crd.errors import CrdError
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tests.support.daemon import RunningDaemon

NOBODY = 65534
UPGRADED = ("Export", "Import")


def opened_to_others(path: Path) -> None:
    """Let other users through to a directory."""
    for directory in (path, *path.parents[:4]):
        with suppress(PermissionError):
            directory.chmod(directory.stat().st_mode | 0o011)


def become(uid: int, groups: Collection[int] = ()) -> None:
    """Be another user, with the group of the same number, from now on."""
    os.setgroups([*groups])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def run_as(uid: int, work: Callable[[], Any], groups: Collection[int] = ()) -> Any:
    """Do something as another user; what it returns has to be JSON."""
    readable, writable = os.pipe()
    if not (child := os.fork()):
        answer: Any = "crashed"
        try:
            become(uid, groups)
            answer = work()
        finally:
            with os.fdopen(writable, "w") as file:
                json.dump(answer, file)
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as file:
        answer = json.load(file)
    os.waitpid(child, 0)
    return answer


def call_as(daemon: RunningDaemon, uid: int, method: str, groups: Collection[int] = (), **parameters: Any,
            ) -> tuple[str, dict[str, Any]]:
    """Call a method as another user; return the code of the error, empty if there was none, and the last reply."""
    def call() -> tuple[str, dict[str, Any]]:
        try:
            with Client(daemon.socket) as client:
                if method in UPGRADED:
                    return "", client.upgrade(method, **parameters)[0]
                return "", list(client.stream(method, **parameters))[-1]
        except CrdError as error:
            return error.code, {}

    code, reply = run_as(uid, call, groups)
    return code, reply


def as_nobody(daemon: RunningDaemon, method: str, **parameters: Any) -> str:
    """Call a method as nobody; return the code of the error."""
    return call_as(daemon, NOBODY, method, **parameters)[0]


PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    int log = open("count.log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    for (int count = 1;; count++) {
        dprintf(log, "%d\n", count);
        usleep(10000);
    }
}
"""
"""Python may be where other users cannot go."""


class UsersProgram(CountingProgram):
    """A program that counts as another user, in a directory of that user's."""

    def __init__(self, home: Path, uid: int = NOBODY, groups: Collection[int] = ()) -> None:
        home.mkdir(mode=0o755)
        os.chown(home, uid, uid)
        program = home / "count"
        subprocess.run(["gcc", "-O1", "-x", "c", "-o", program, "-"], input=PROGRAM.encode(), check=True)
        super().__init__(home, command=[program], user=uid, group=uid, extra_groups=[*groups])
