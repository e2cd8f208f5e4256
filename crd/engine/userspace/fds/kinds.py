"""Every kind of object that descriptors may be open on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.fds.epoll import EpollSets
from crd.engine.userspace.fds.eventfd import EventFds
from crd.engine.userspace.fds.inet import InetSockets
from crd.engine.userspace.fds.inotify import Inotifies
from crd.engine.userspace.fds.mqueue import MessageQueues
from crd.engine.userspace.fds.multicast import MulticastGroups
from crd.engine.userspace.fds.netlink import NetlinkSockets
from crd.engine.userspace.fds.pidfd import PidFds
from crd.engine.userspace.fds.pipe import Pipes
from crd.engine.userspace.fds.regular import RegularFiles
from crd.engine.userspace.fds.signalfd import SignalFds
from crd.engine.userspace.fds.socket_filter import SocketFilters
from crd.engine.userspace.fds.terminal import Terminals
from crd.engine.userspace.fds.timerfd import TimerFds
from crd.engine.userspace.fds.unix import UnixSockets
from crd.engine.userspace.fds.unnamed import UnnamedFiles

if TYPE_CHECKING:
    from crd.engine.userspace.fds.kind import Kind

KINDS: tuple[Kind, ...] = (Pipes(), MessageQueues(), UnnamedFiles(), Terminals(), RegularFiles(), EventFds(),
                           TimerFds(), SignalFds(), Inotifies(), PidFds(), UnixSockets(), InetSockets(),
                           NetlinkSockets(), EpollSets(), SocketFilters(), MulticastGroups())
"""In the order in which their records stand in an image: what refers to others comes behind them."""
