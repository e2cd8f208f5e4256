"""Which tests may run side by side when pytest runs in several processes (``make test``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

ONE_AFTER_ANOTHER = ("tests/engine/", "tests/native/", "tests/e2e/programs/", "tests/e2e/test_programs.py",
                     "tests/e2e/test_terminals.py", "tests/e2e/test_outside_terminals.py", "tests/e2e/test_victims.py",
                     "tests/e2e/test_kernel_engine.py", "tests/contracts/test_calls.py")
"""They bring back what a machine has only one of under each number or address: terminals, System V IPC, networks; or
they see to it that no group of theirs is left in the freezer hierarchy, which has all of them in one place."""


class Lanes(LoadScopeScheduling):
    """Runs the tests of a file one after another, and those of ``ONE_AFTER_ANOTHER`` as if they were one file."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # few tests in a file does not mean that they are over soon

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "one after another" if file.startswith(ONE_AFTER_ANOTHER) else file
