"""Varlink on the wire: JSON messages, each ended by a NUL byte.

Source: https://varlink.org/Method-Call.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from crd.errors import BadRequest

MESSAGE_BYTES_MAX = 1 << 20
"""Of a call."""

SERVICE = "org.varlink.service"
INTERFACE = "io.crd"
FAILED = f"{INTERFACE}.Failed"
UPGRADED = frozenset({f"{INTERFACE}.Export", f"{INTERFACE}.Import"})
"""Methods that are called with ``upgrade``, and only so."""

T = TypeVar("T")


class Call(msgspec.Struct):
    """What a client wants.

    Attributes:
        method: with its interface: ``io.crd.GetStatus``.
        more: several replies are welcome.
        oneway: none is.
        upgrade: the connection is to speak another protocol afterwards.
    """

    method: str
    parameters: dict[str, Any] | None = None
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


class Reply(msgspec.Struct):
    """What it gets; ``parameters`` belong to the error if there is one."""

    parameters: dict[str, Any] | None = None
    continues: bool = False
    error: str | None = None


class ServiceError(Exception):
    """An error of ``org.varlink.service``, which every Varlink service may give."""

    def __init__(self, name: str, **parameters: str) -> None:
        super().__init__(f"{SERVICE}.{name}")
        self.name = f"{SERVICE}.{name}"
        self.parameters = parameters

    @classmethod
    def invalid_parameter(cls, parameter: str) -> ServiceError:
        """Return the error for a parameter that is unknown, missing or of the wrong type."""
        return cls("InvalidParameter", parameter=parameter)


_CALLS = msgspec.json.Decoder(Call)
_REPLIES = msgspec.json.Decoder(Reply)


def decode_call(message: bytes | bytearray) -> Call:
    """Read a call.

    Raises:
        BadRequest: it is not a well-formed one.
    """
    call = _decode(_CALLS, message)
    if call.oneway and (call.more or call.upgrade):
        raise BadRequest("a call without reply cannot ask for more")
    return call


def decode_reply(message: bytes | bytearray) -> Reply:
    """Read a reply.

    Raises:
        BadRequest: it is not a well-formed one.
    """
    return _decode(_REPLIES, message)


def _decode(decoder: msgspec.json.Decoder[T], message: bytes | bytearray) -> T:
    try:
        return decoder.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not a Varlink message: {error}") from error


def encode(message: Call | Reply) -> bytes:
    """Return a message as it is sent, NUL included; what is not Unicode in its strings is escaped."""
    try:
        return msgspec.json.encode(_without_defaults(message)) + b"\0"
    except UnicodeEncodeError:  # names of files and processes are bytes: surrogates stand for what is not UTF-8
        return msgspec.json.encode(_escaped(_without_defaults(message))) + b"\0"


def _without_defaults(message: Call | Reply) -> dict[str, Any]:
    fields = {name: value for name in message.__struct_fields__ if (value := getattr(message, name))}
    return {"parameters": {}, **fields}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


class MessageBuffer:
    """Puts messages together from what arrives, and holds no more than one of the largest allowed."""

    def __init__(self, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """Refuse messages of more than ``bytes_max`` bytes."""
        self._bytes_max = bytes_max
        self._partial = bytearray()

    @property
    def partial(self) -> bool:
        """Whether the beginning of a message is there, but not its end."""
        return bool(self._partial)

    def feed(self, data: bytes) -> list[bytearray]:
        """Add what has arrived; return the messages that are now whole.

        Raises:
            BadRequest: a message is too long.
        """
        self._partial += data
        messages: list[bytearray] = []
        if b"\0" in data:
            *messages, self._partial = self._partial.split(b"\0")
        if any(len(message) > self._bytes_max for message in (*messages, self._partial)):
            raise BadRequest(f"a message of more than {self._bytes_max} bytes")
        return messages
