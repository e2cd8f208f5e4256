"""What a restart would make, and everything that stands in its way: told, and nothing made."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from crd.engine.api import Files, Made, RestartPlan
from crd.engine.userspace import credentials
from crd.engine.userspace.clash import clash
from crd.engine.userspace.fds import rollback, stdio
from crd.engine.userspace.plan import clashes
from crd.engine.userspace.vessel import check_processor
from crd.errors import ResourceChanged
from crd.image.objects import (
    DESCRIPTIONS,
    UNNAMED_DIRECTORY,
    UNNAMED_HUGE,
    UNNAMED_MEMORY,
    FileContent,
    InetSocket,
    OutsideConnection,
    OutsideTerminal,
    Pipe,
    PipeEnd,
    RegularFile,
    SharedMemory,
    Terminal,
    TerminalEnd,
    UnixSocket,
    UnnamedFile,
    UnnamedOpen,
)
from crd.image.profile import LOCK_FLOCK, LOCK_LEASE, LOCK_OFD, LOCK_POSIX
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.api import RestartOptions
    from crd.engine.userspace.plan import Plan, TreePlan

_LOCKS = {LOCK_POSIX: "POSIX lock", LOCK_FLOCK: "flock", LOCK_OFD: "OFD lock", LOCK_LEASE: "lease"}
_UNNAMED = {UNNAMED_MEMORY: "memory file", UNNAMED_HUGE: "memory file", UNNAMED_DIRECTORY: "deleted directory"}
_OF_OTHERS = (RegularFile, PipeEnd, TerminalEnd, UnnamedOpen, UnixSocket, InetSocket)
"""Descriptions that are told with what they are open on."""


def forecast(tree: TreePlan, options: RestartOptions) -> RestartPlan:
    """Tell what would be made of an image, and what keeps it from that."""
    found = [*clash(check_processor, tree), *clashes(tree, options)]
    return RestartPlan(
        makes=(*_tasks(tree, options), *_files(tree.root, options), *_named(tree.root),
               *_terminals(tree.root, options), *_counted(tree.root), *_locks(tree)),
        clashes=tuple(error.to_json() for error in found), notes=tuple(_lacking(tree)))


def _tasks(tree: TreePlan, options: RestartOptions) -> Iterator[Made]:
    where = {"new": "under any free number", "namespace": "in a pid namespace of its own"}.get(options.pids, "")
    for plan in tree.processes:
        threads = f"{len(plan.threads)} thread{'s' * (len(plan.threads) != 1)}"
        words = [plan.process.exe, threads, f"uid {plan.leader.uids[1]}", where,
                 f"stopped by signal {plan.process.stopped_by}" if plan.process.stopped_by else ""]
        yield Made("task", f"{plan.pid} ({plan.leader.comm})", ", ".join(filter(None, words)))
    for zombie, name in tree.zombies:
        yield Made("zombie", f"{zombie.pid} ({name})", f"wait status {zombie.wait_status:#x}")


def _files(plan: Plan, options: RestartOptions) -> Iterator[Made]:
    known = rollback.known(plan)
    told = set()
    for record in plan.of(RegularFile):
        identity = record.device, record.inode
        if identity not in told:
            told.add(identity)
            how = "opened" if record.objref in plan.shared.opened else "mapped"
            if options.files == Files.ROLLBACK and identity in known:
                how = f"{how}, {_rolled_back(known[identity])}"
            yield Made("file", record.path, how)


def _rolled_back(one: rollback.Known) -> str:
    try:
        verdict = one.judge()
    except ResourceChanged:
        return "cannot be put back"
    return {rollback.Verdict.LEAVE: "left as it is", rollback.Verdict.CUT: f"cut off to {one.content.size} bytes",
            rollback.Verdict.PUT_BACK: "its saved content put back"}[verdict]


def _named(plan: Plan) -> Iterator[Made]:
    """Tell the objects that have a name or a number outside of the tasks."""
    for pipe in plan.of(Pipe):
        if pipe.path:
            yield Made("named pipe", pipe.path, f"{pipe.data_bytes} bytes in it")
    for file in plan.of(UnnamedFile):
        kind = _UNNAMED.get(file.kind, "deleted file")
        yield Made(kind, file.path, f"{file.size} bytes")
    for unix in plan.of(UnixSocket):
        if unix.name:
            yield Made("unix socket", unix.name.replace(b"\0", b"@").decode(errors="replace"), unix.path)
    outside = {connection.socket for connection in plan.of(OutsideConnection)}
    for inet in plan.of(InetSocket):
        if inet.local_port:
            kind = "TCP" if inet.kind == 1 else "UDP"
            what = "listens" if inet.listening else inet.remote_port and f"to {inet.remote_address} {inet.remote_port}"
            if inet.objref in outside:
                what = f"{what}, {'goes on' if inet.objref in plan.shared.going_on else 'is over'}"
            yield Made(f"{kind} port", f"{inet.local_address} {inet.local_port}", what or "")


def _terminals(plan: Plan, options: RestartOptions) -> Iterator[Made]:
    for terminal in plan.of(Terminal):
        yield Made("terminal", f"/dev/pts/{terminal.index}", f"{terminal.columns} by {terminal.rows}")
    for outside in plan.of(OutsideTerminal):
        yield Made("terminal of others", f"/dev/pts/{outside.index}", f"in its place {stdio.substitute(options.stdio)}")


def _counted(plan: Plan) -> Iterator[Made]:
    """Tell how many there are of all others."""
    counts = Counter({"pipe": sum(not pipe.path for pipe in plan.of(Pipe)),
                      "shared memory": len(plan.of(SharedMemory)),
                      "unix socket without a name": sum(not unix.name for unix in plan.of(UnixSocket)),
                      "saved file": sum(bool(content.saved) for content in plan.of(FileContent))})
    counts.update({kind.record_name.lower(): len(plan.of(kind)) for kind in DESCRIPTIONS if kind not in _OF_OTHERS})
    for kind, count in counts.items():
        if count:
            yield Made(kind, "", str(count))


def _locks(tree: TreePlan) -> Iterator[Made]:
    for plan in tree.processes:
        by_fd = {record.fd: plan.objects[record.objref] for record in plan.descriptors}
        for lock in plan.locks:
            how = "exclusive" if lock.exclusive else "shared"
            yield Made(_LOCKS[lock.kind], getattr(by_fd[lock.fd], "path", f"descriptor {lock.fd}"), how)


def _lacking(tree: TreePlan) -> Iterator[str]:
    ours = credentials.dump(procfs.status("self")).capabilities
    for thread in tree.threads:
        if lacking := credentials.missing(thread, ours):
            yield f"thread {thread.tid} lacks capabilities that crd itself has not: {lacking:#x}"
