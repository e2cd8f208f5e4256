from __future__ import annotations

import json

import pytest

from crd.api.protocol import Call, MessageBuffer, Reply, decode_call, decode_reply, encode
from crd.errors import BadRequest


def test_calls_and_replies_survive_the_wire() -> None:
    call = Call("io.crd.Check", {"pid": 1}, more=True)
    assert decode_call(encode(call)[:-1]) == call
    reply = Reply({"a": [1, {"b": None}]}, continues=True)
    assert decode_reply(encode(reply)[:-1]) == reply
    assert json.loads(encode(Reply())[:-1]) == {"parameters": {}}
    assert json.loads(encode(Reply({}, error="a.B"))[:-1]) == {"parameters": {}, "error": "a.B"}


def test_names_that_are_not_unicode_are_escaped() -> None:
    sent = encode(Reply({"comm": "a\udc80b", "list": ["\udcff", {"\udc81": 1}]}))
    assert decode_reply(sent[:-1]).parameters == {"comm": "a\\udc80b", "list": ["\\udcff", {"\\udc81": 1}]}


@pytest.mark.parametrize("message", [
    b"", b" ", b"{}", b"[]", b"null", b"7", b'"x"', b"{", b'{"method"}', b'{"method": 7}', b'{"method": null}',
    b'{"method": "a", "parameters": []}', b'{"method": "a", "parameters": 7}', b'{"method": "a", "more": 1}',
    b'{"method": "a", "oneway": "yes"}', b'{"method": "\xff"}', b'{"method": "\\ud800"}', b"\xfe\xff",
    b'{"method": "a"} {"method": "b"}', b'{"method": "a", "parameters": {"x": NaN}}',
    b'{"method": "a", "parameters": {"x": 1e999}}',
    b'{"method": "a", "oneway": true, "more": true}', b'{"method": "a", "oneway": true, "upgrade": true}',
    b'{"method": "a", "parameters": {"x": ' + b"[" * 100_000,
    b'{"method": "a", "parameters": {"x": ' + b'{"a":' * 100_000,
])
def test_malformed_calls(message: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_call(message)


def test_messages_are_put_together_from_pieces() -> None:
    buffer = MessageBuffer()
    assert buffer.feed(b"ab") == []
    assert buffer.partial
    assert buffer.feed(b"c\0\0de\0f") == [b"abc", b"", b"de"]
    assert buffer.partial
    assert buffer.feed(b"\0") == [b"f"]
    assert not buffer.partial


@pytest.mark.parametrize("pieces", [[b"12345"], [b"123", b"45"], [b"12345\0"], [b"1\x0012345\0"], [b"1\0", b"12345"]])
def test_messages_that_are_too_long(pieces: list[bytes]) -> None:
    buffer = MessageBuffer(4)
    for piece in pieces[:-1]:
        buffer.feed(piece)
    with pytest.raises(BadRequest):
        buffer.feed(pieces[-1])
    assert MessageBuffer(4).feed(b"1234\0") == [b"1234"]
