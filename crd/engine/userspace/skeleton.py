"""The tasks of a tree: each with its number, its parent, its session and its process group.

Only the first is a process that we start; each of the others is made by its parent's vessel.  A session is inherited at
birth and cannot be joined, so where somebody is born decides about it; and so is memory that a parent and its child
share copy-on-write, so when does, too.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from crd.engine.userspace import numbers
from crd.engine.userspace.kin import Kin, relatives
from crd.engine.userspace.mem import inheritance
from crd.engine.userspace.vessel import CLONE_PARENT, Grounds, Vessel, seize
from crd.errors import NativeError, PidInUse, RestartError, RestartUnsupported
from crd.native import tracee
from crd.native.syscall import NR, syscall
from crd.native.vessel import spawn_vessel
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from crd.engine.userspace.plan import TreePlan

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_PRLIMIT64, _RLIMIT_CORE = 302, 4
_NO_CORE = struct.pack("<2Q", 0, 0)


class Skeleton:
    """Vessels for all processes of an image.  A context manager: unless they were released, they are killed.

    At first there are those that need not wait for the memory of their parents; ``grow``, and at last ``complete``,
    make the others, and ``finish`` gives all of them their groups.

    Attributes:
        vessels: by pid in the image, parents before children.
        numbers: of each process, group and session now, by that in the image.
        notes: what cannot be as it was, a sentence each.
    """

    def __init__(self, tree: TreePlan, *, same_numbers: bool, control: Mapping[int, Callable[[Vessel], None]],
                 session: int | None = None) -> None:
        """Make them.

        Args:
            tree: of the image.
            same_numbers: they get those of the image.
            session: for those who were in the first process's: that which it leads now, by its number in the image, or
                any other for the one that crd is in; None: as it was.
            control: gives the session of a leader, by its number in the image, its terminal.

        Raises:
            PidInUse, FeatureMissing: a number cannot be had.
            RestartUnsupported: a session cannot be made again, or the processor differs.
        """
        self._tree = tree
        self._same_numbers = same_numbers
        self._control = control
        then = tree.root.process.session
        self._kin = {kin.pid: replace(kin, session=session) if session and kin.session == then else kin
                     for kin in relatives(tree)}
        self._root = self._kin[tree.root.pid]
        self.vessels: dict[int, Vessel] = {}
        self.numbers: dict[int, int] = {}
        self.notes: list[str] = []
        self._sessions: dict[int, int] = {}  # the one that each is in now, and its group
        self._groups: dict[int, int] = {}
        self._buried: list[int] = []
        self._aliens: list[Kin] = []
        self._waited_for = inheritance.parents_of_heirs(tree.processes)
        self._childless: dict[int, int] = {}  # of those: the session in which each was born
        self._spare = iter(range(procfs.number("sys", "kernel/pid_max") - 1, 1, -1))
        self._spawned = 0
        _adopt_orphans(yes=True)
        try:
            with self._who_has_a_number():
                self._make()
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.vessels:
            self._kill()

    def __getitem__(self, pid: int) -> Vessel:
        """Return the vessel of a process of the image."""
        return self.vessels[pid]

    @property
    def root(self) -> Vessel:
        """The first one."""
        return self.vessels[self._root.pid]

    def release(self) -> None:
        """Let all go, children first."""
        _adopt_orphans(yes=False)
        vessels, self.vessels = list(self.vessels.values()), {}
        for vessel in reversed(vessels):
            vessel.release()
            vessel.memory.close()

    def _kill(self) -> None:
        """Kill all, parents first: their children are ours then, and none is left to anybody."""
        vessels, self.vessels = list(self.vessels.values()), {}
        for vessel in vessels:
            vessel.kill()
        for vessel in vessels:
            vessel.wait_end()
        for pid in self._buried:
            with suppress(NativeError):
                tracee.wait_end(pid)
        if self._spawned and not vessels:
            with suppress(ProcessLookupError, NativeError, ChildProcessError):
                os.kill(self._spawned, signal.SIGKILL)
                os.waitpid(self._spawned, 0)
        _adopt_orphans(yes=False)

    # --- making -----------------------------------------------------------------------------------

    def _make(self) -> None:
        root = self._root
        self._spawned = spawn_vessel(self._wanted(root.pid))
        seize(self._spawned, self._tree)
        areas = [(entry.start, entry.end) for entry in procfs.maps(self._spawned)]
        vessel = Vessel(self._spawned, Grounds(self._tree, areas))
        self._note(root, vessel, 0)
        vessel.take_over()
        self._populate(root, 0 if root.leads_session else root.session)
        while self._make_aliens():
            pass

    def grow(self, pid: int) -> bool:
        """Have a process, whose memory is complete, make its children; return whether there are any new ones.

        Raises: as at first.
        """
        if pid not in self._childless:
            return False
        with self._who_has_a_number():
            self._populate_at_last(pid)
            while self._make_aliens():
                pass
        return True

    def complete(self) -> None:
        """Make all that are not there yet, whatever memory their parents have; raises as at first."""
        with self._who_has_a_number():
            while self._childless or self._aliens:
                for pid in [*self._childless]:
                    self._populate_at_last(pid)
                if not self._make_aliens() and not self._childless and self._aliens:
                    alien = self._aliens[0]
                    raise RestartUnsupported(f"process {alien.pid} cannot be put into session {alien.session} again: "
                                             f"its parent {alien.parent} has no descendant there")

    def finish(self) -> None:
        """Give all of them their groups, and have those end that were zombies; raises as at first."""
        self.complete()
        with self._who_has_a_number():
            self._make_groups()
            self._bury()

    def _wanted(self, pid: int) -> int:
        return pid if self._same_numbers else 0

    def _note(self, kin: Kin, vessel: Vessel, group: int) -> None:
        self.vessels[kin.pid] = vessel
        self.numbers[kin.pid] = vessel.pid
        self._groups[kin.pid] = group

    def _populate(self, kin: Kin, session: int) -> None:
        """Have a vessel make its children, and lead its session between those that are in the one it was born in.

        Where one of them inherits of its memory all of them wait for that.
        """
        self._sessions[kin.pid] = session
        if kin.pid in self._waited_for:
            self._childless[kin.pid] = session
            return
        vessel = self.vessels[kin.pid]
        children = [child for child in self._kin.values() if child.parent == kin.pid and child is not self._root]
        early = [child for child in children if kin.leads_session and session and self._birth_session(child) == session]
        for child in early:
            self._bear(child, kin, session)
        if kin.leads_session:
            vessel.batch.call(NR.SETSID, what="setsid")
            vessel.run()
            self._sessions[kin.pid] = self._groups[kin.pid] = kin.pid
            if give := self._control.get(kin.pid):
                give(vessel)
        for child in children:
            if child not in early:
                wanted = self._birth_session(child)
                if wanted in {kin.session, 0}:
                    self._bear(child, kin, kin.session)
                else:
                    self._aliens.append(child)

    def _populate_at_last(self, pid: int) -> None:
        self._waited_for.discard(pid)
        self._populate(self._kin[pid], self._childless.pop(pid))

    def _birth_session(self, kin: Kin) -> int:
        """Return the session in which a process must have been born; 0: any, since it leads one itself.

        Its children may tell: those that are neither in its session nor lead theirs were born before it led that.
        """
        if not kin.leads_session:
            return kin.session
        born = {child.session for child in self._kin.values()
                if child.parent == kin.pid and not child.leads_session and child.session != kin.pid}
        return born.pop() if len(born) == 1 else 0

    def _bear(self, child: Kin, maker: Kin, session: int) -> None:
        """Have a vessel make a child of its own."""
        vessel = self.vessels[maker.pid].bear(self._wanted(child.pid), child.exit_signal, flags=child.flags)
        self._note(child, vessel, self._groups[maker.pid])
        self._populate(child, session)

    def _make_aliens(self) -> int:
        """Make those whose session is not their parent's, as far as it can be done now, and return how many.

        They came to that as orphans.
        """
        aliens, self._aliens = self._aliens, []
        made = 0
        for alien in aliens:
            session = self._birth_session(alien)
            member = next((pid for pid, its in self._sessions.items()
                           if its == session and self._is_below(pid, alien.parent)), 0)
            if member:
                self._bear_orphan(alien, member, session)
                made += 1
            elif session not in self._sessions.values() and session not in self._kin:
                self._bear_by_dead_leader(alien, session)
                made += 1
            else:
                self._aliens.append(alien)
        return made

    def _is_below(self, pid: int, ancestor: int) -> bool:
        while pid in self._kin and pid != self._root.pid:
            pid = self._kin[pid].parent
            if pid == ancestor:
                return True
        return False

    def _bear_orphan(self, alien: Kin, member: int, session: int) -> None:
        """Have a member of the session make it by a helper, whose end makes it an orphan, for its parent to adopt."""
        parent = self.vessels[alien.parent]
        parent.batch.call(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 1)
        parent.run()
        helper = self._helper(self.vessels[member])
        self._note(alien, helper.bear(self._wanted(alien.pid), alien.exit_signal), self._groups[member])
        self._dismiss(helper, self.vessels[member])
        parent.batch.call(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, 0)
        parent.run()
        self._populate(alien, session)

    def _bear_by_dead_leader(self, alien: Kin, session: int) -> None:
        """Have a helper lead the session, make a sibling of itself in it, and end."""
        parent = self.vessels[alien.parent]
        helper = parent.bear(self._wanted(session), alien.exit_signal)
        self.numbers[session] = helper.pid
        helper.batch.call(NR.SETSID, what="setsid")
        helper.run()
        self._note(alien, helper.bear(self._wanted(alien.pid), 0, flags=CLONE_PARENT), session)
        self._dismiss(helper, parent)
        self._populate(alien, session)

    def _helper(self, maker: Vessel) -> Vessel:
        """Have a vessel make a child under a number that the image has not."""
        if not self._same_numbers:
            return maker.bear(0, signal.SIGCHLD)
        known = self._tree.numbers | {number for kin in self._kin.values() for number in (kin.group, kin.session)}
        for number in self._spare:
            if number not in known:
                try:
                    return maker.bear(number, signal.SIGCHLD)
                except RestartError as error:
                    if error.details.get("errno") != errno.EEXIST:
                        raise
        raise RestartUnsupported("no process number is left")

    @staticmethod
    def _dismiss(helper: Vessel, parent: Vessel) -> None:
        helper.end()
        parent.reap(helper.pid)

    # --- groups and zombies -----------------------------------------------------------------------

    def _make_groups(self) -> None:
        """Have everybody join the process group that it was in, first those whose leader has moved to another one."""
        groups: dict[int, list[Kin]] = {}
        for kin in self._kin.values():
            groups.setdefault(kin.group, []).append(kin)
        for group in sorted(groups, key=lambda number: number not in self._kin or self._kin[number].group == number):
            self._make_group(group, groups[group])
        if not self._root.leads_session:
            self.notes.append(f"session {self._tree.root.process.session} is not led by {self._root.pid}: it is in "
                              "that of crd now")

    def _make_group(self, group: int, members: list[Kin]) -> None:
        leader, helper = self._kin.get(group), None
        if leader is None and group == self._root.group:
            leader = self._root
            self.notes.append(f"group {group} is led by another process: {leader.pid} leads its own now")
        if leader:
            self.numbers[group] = self.numbers[leader.pid]
            if not leader.leads_session:
                self._lead(self.vessels[leader.pid])
        elif not any(self._groups[kin.pid] == group for kin in members):
            maker = self.vessels[members[0].pid]
            helper = maker.bear(self._wanted(group), signal.SIGCHLD)
            self.numbers[group] = helper.pid
            self._lead(helper)
        for kin in members:
            if kin is not leader and self._groups[kin.pid] != group:
                vessel = self.vessels[kin.pid]
                vessel.batch.call(NR.SETPGID, 0, self.numbers[group], what=f"joining group {group}")
                vessel.run()
        if helper:
            self._dismiss(helper, maker)

    @staticmethod
    def _lead(vessel: Vessel) -> None:
        vessel.batch.call(NR.SETPGID, 0, 0, what="setpgid")
        vessel.run()

    def _bury(self) -> None:
        """Have those end that were zombies; each stays one until its parent waits for it."""
        for zombie, name in self._tree.zombies:
            vessel = self.vessels.pop(zombie.pid)
            self._buried.append(vessel.pid)
            batch = vessel.batch
            batch.call(NR.PRCTL, _PR_SET_NAME, batch.text(name))
            batch.call(_PRLIMIT64, 0, _RLIMIT_CORE, batch.data(_NO_CORE), 0)
            batch.call(NR.SETRESGID, *zombie.gids[:3], what="setresgid")
            batch.call(NR.SETRESUID, *zombie.uids[:3], what="setresuid")
            vessel.run()
            if number := zombie.wait_status & 0x7F:
                vessel.end_by(number)
            else:
                vessel.end(zombie.wait_status >> 8 & 0xFF)

    # --- errors -----------------------------------------------------------------------------------

    def _who_has_a_number(self) -> _WhoHasIt:
        return _WhoHasIt(self)

    def wanted_numbers(self) -> set[int]:
        """Return all numbers that the image needs and that no vessel has yet."""
        needed = {number for kin in self._kin.values() for number in (kin.pid, kin.group, kin.session)
                  if kin is not self._root or number == kin.pid}
        return needed - self.numbers.keys() - {self._root.group, self._root.session}


class _WhoHasIt:
    """A context in which a number that is in use is told with its user."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if isinstance(error, PidInUse) or (
                isinstance(error, RestartError) and error.details.get("errno") == errno.EEXIST):
            ours = {vessel.pid for vessel in self._skeleton.vessels.values()}
            numbers.await_free(sorted(self._skeleton.wanted_numbers() - ours))  # says who has it


def _adopt_orphans(*, yes: bool) -> None:
    """Have the vessels whose parent has ended become our children."""
    syscall(NR.PRCTL, _PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
