"""Who makes whom, so that every task of an image gets its parent, thread group, process group and session.

A session is left by setsid(2) alone and otherwise inherited from whoever forks, who need not be the parent: so the
order matters, and some tasks are made by others than their parents (spec section 8.1: DumpForest and MakeForest)::

    early     by its parent, before that leads a session of its own
    late      by its parent, in its session
    sibling   by a member of its session that has the same parent (CLONE_PARENT)
    orphan    by a placeholder in its session, which ends at once, so that the root inherits it

A **ghost** is made for a pid that only names a session or a process group: whoever had it has ended.  A
**coordinator** is the root's parent, which is no part of the tree, and directs the restart of gen-D.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from crd.errors import RestartUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.image.inspection import TaskEntry


class Role(Enum):
    """What a process is made for."""

    TASK = 1
    GHOST = 2
    PLACEHOLDER = 3
    COORDINATOR = 4


@dataclass(slots=True, eq=False)
class Node:
    """A process to be made.

    Attributes:
        pid: in the image; 0 of placeholder and coordinator.
        parent: whose child it is at last; None of the root.
        process_group, session: whose pid they are named by; 0: the image does not say, and they stay what they are.
        role: what it is made for.
        threads: pids of its threads but the first, in the image.
        early, late: whom it makes before and after it leads its session.
        is_sibling: it is a child of its maker's parent.
        inherited: the session in which it must be made, if it leads one; 0: any.
        names_group: others are in the process group that has its pid.
        adopts: it inherits the orphans among its descendants.
    """

    pid: int
    parent: Node | None
    process_group: int = 0
    session: int = 0
    role: Role = Role.TASK
    threads: list[int] = field(default_factory=list)
    early: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    is_sibling: bool = False
    inherited: int = 0
    names_group: bool = False
    adopts: bool = False

    @property
    def leads_session(self) -> bool:
        """Whether it is the first of its session."""
        return bool(self.pid) and self.session == self.pid

    def family(self) -> Iterator[Node]:
        """Iterate over it and all that it has made, and that those have."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += node.early + node.late


def forest(tasks: Iterable[TaskEntry]) -> Node:
    """Plan the processes of an image; the first task is the root.

    Session and process group of the root come from outside of the image, unless they are its own: it leads new ones,
    and so those of its descendants who share them.

    Raises:
        RestartUnsupported: the tasks cannot be made so.
    """
    return _Forest(list(tasks)).planned()


class _Forest:
    def __init__(self, tasks: list[TaskEntry]) -> None:
        pids = [task.pid or 0 for task in tasks]
        if min(pids) <= 0 or len({*pids}) < len(pids) or tasks[0].thread_group != tasks[0].pid:
            raise RestartUnsupported("the image has a task without a pid, two with the same, or a thread as its first")
        self.first = tasks[0]
        self.nodes = {pid: self._process(pid, task) for pid, task in zip(pids, tasks, strict=True)
                      if task.thread_group == pid}
        self.root = self.nodes[pids[0]]
        self.parents = {pid: task.parent_pid or 0 for pid, task in zip(pids, tasks, strict=True) if pid in self.nodes}
        del self.parents[self.root.pid]
        for pid, task in zip(pids, tasks, strict=True):
            if pid not in self.nodes:
                self._add_thread(pid, task.thread_group or 0)

    def _process(self, pid: int, task: TaskEntry) -> Node:
        """Return a process, whose session and group are the root's if they are those that the root has from outside."""
        root_pid = self.first.pid or 0
        if task.session is None or task.process_group is None:
            return Node(pid, None)
        if pid == root_pid:
            return Node(pid, None, pid, pid)
        session, group = task.session, task.process_group
        if session in {0, self.first.session}:
            session = root_pid
            group = root_pid if group in {0, self.first.session, self.first.process_group} else group
        return Node(pid, None, group, session)

    def _add_thread(self, pid: int, process_pid: int) -> None:
        process = self.nodes.get(process_pid)
        if process is None:
            raise RestartUnsupported(f"task {pid} is a thread of {process_pid}, which is not in the image")
        process.threads.append(pid)

    def planned(self) -> Node:
        for pid, parent_pid in self.parents.items():
            # a parent from outside of the image cannot be had again
            self.nodes[pid].parent = self.nodes.get(parent_pid, self.root)
        self._check_for_circles()
        self._add_ghosts()
        undecided = [node for node in self.nodes.values() if node is not self.root and not self._by_parent(node)]
        for node in undecided:
            if not (self._early(node) or self._sibling(node) or self._orphan(node)):
                raise RestartUnsupported(f"task {node.pid} cannot be made: it is in session {node.session}, which it "
                                         f"cannot have from its parent {node.parent.pid if node.parent else 0}")
        for node in self.nodes.values():
            if node.leads_session and node.parent:
                self._make(node.parent, node, early=bool(node.inherited) and node.parent.session != node.inherited)
        return self.root

    def _check_for_circles(self) -> None:
        rooted = {self.root.pid}
        for start in self.nodes.values():
            path: dict[int, Node] = {}
            node = start
            while node.pid not in rooted:
                if node.pid in path or node.parent is None:
                    raise RestartUnsupported(f"task {node.pid} is its own ancestor")
                path[node.pid] = node
                node = node.parent
            rooted |= path.keys()

    def _add_ghosts(self) -> None:
        """Add who led the sessions and groups of others: a leader of a session where it can make those (as sibling)."""
        for node in list(self.nodes.values()):
            if node.session and node.session not in self.nodes:
                self.nodes[node.session] = Node(node.session, node.parent, node.session, node.session, Role.GHOST)
            if node.process_group and node.process_group not in self.nodes:
                self.nodes[node.process_group] = Node(node.process_group, self.nodes[node.session], node.process_group,
                                                      node.session, Role.GHOST)
            if leader := self.nodes.get(node.process_group):
                if leader.session != node.session:
                    raise RestartUnsupported(f"task {node.pid} is in process group {leader.pid}, but not in its "
                                             "session")
                leader.names_group = True

    # --- who makes a process; leaders of sessions come last, when it is known what they must inherit ---

    @staticmethod
    def _make(maker: Node, node: Node, *, early: bool = False) -> bool:
        (maker.early if early else maker.late).append(node)
        return True

    def _by_parent(self, node: Node) -> bool:
        assert node.parent is not None  # noqa: S101  # only the root has none
        if node.leads_session:
            return True
        return node.session == node.parent.session and self._make(node.parent, node)

    def _early(self, node: Node) -> bool:
        parent = node.parent
        return bool(parent and parent.leads_session and self._inherits(parent, node.session)
                    and self._make(parent, node, early=True))

    def _inherits(self, leader: Node, session: int) -> bool:
        """Have a leader made in another session, if its ancestors can be made so that this is possible."""
        if leader.inherited or leader.parent is None:
            return leader.inherited == session
        parent = leader.parent
        if parent.session != session and not (parent.leads_session and self._inherits(parent, session)):
            return False
        leader.inherited = session
        return True

    def _sibling(self, node: Node) -> bool:
        leader = self.nodes[node.session]
        if leader.parent is not node.parent:
            return False
        node.is_sibling = True
        return self._make(leader, node)

    def _orphan(self, node: Node) -> bool:
        if node.parent is not self.root:
            return False
        leader = self.nodes[node.session]
        self.root.adopts = True
        placeholder = Node(0, leader, 0, node.session, Role.PLACEHOLDER, late=[node])
        return self._make(leader, placeholder)
