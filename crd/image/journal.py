"""The record of connections to the journal of systemd; ``objects`` says where it stands."""

from __future__ import annotations

from crd.image.codec import Record
from crd.image.fields import U8, U32, Bytes, Text  # noqa: TC001  # evaluated when the class is made


class JournalConnection(Record, type=0x4352007A):
    """A stream to the journal, whose lines become entries, and what it was begun with (sd_journal_stream_fd(3))."""

    socket: U32  # objref
    namespace: Text  # of the journal, "" = that of the host
    identifier: Bytes  # SYSLOG_IDENTIFIER
    unit: Bytes  # that entries are of if their sender is in none
    priority: U32  # of syslog(3), with the facility
    prefixed: U8  # lines may begin with their level: sd-daemon(3)
    to_syslog: U8
    to_kernel: U8
    to_console: U8
