"""Interface descriptions: which methods there are, and what they take and give back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crd.api.kinds import SCALARS, Array, Enumeration, Kind, Map, Maybe, Named, Scalar, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_TOKEN = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.]|-(?!>))*|->|\[string\]|\[\]|[?(),:]")


@dataclass(frozen=True, slots=True)
class Method:
    """What can be called."""

    parameters: Struct
    reply: Struct


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface.

    Attributes:
        name: such as ``io.crd``.
        text: its description, as ``GetInterfaceDescription`` gives it.
        methods, errors, types: by name.
    """

    name: str
    text: str
    methods: Mapping[str, Method]
    errors: Mapping[str, Struct]
    types: Mapping[str, Kind]


def load(name: str) -> Interface:
    """Read the description of that name which ships with crd."""
    return parse((Path(__file__).parent / f"{name}.varlink").read_text())


def parse(text: str) -> Interface:
    """Parse an interface description.

    Raises:
        ValueError: it is not well formed, or names a type that it does not define.
    """
    parser = _Parser(text)
    parser.expect("interface")
    name = parser.name()
    while parser.peek():
        parser.member()
    if unknown := parser.named - parser.types.keys():
        raise ValueError(f"{name} does not define {', '.join(sorted(unknown))}")
    return Interface(name, text, parser.methods, parser.errors, parser.types)


class _Parser:
    """Recursive descent over the tokens of a description."""

    def __init__(self, text: str) -> None:
        self.methods: dict[str, Method] = {}
        self.errors: dict[str, Struct] = {}
        self.types: dict[str, Kind] = {}
        self.named: set[str] = set()
        self._tokens = _tokens(text)
        self._next = 0

    def peek(self) -> str:
        return self._tokens[self._next]

    def take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]

    def expect(self, token: str) -> None:
        if (found := self.take()) != token:
            raise ValueError(f"{token!r} expected, {found!r} found")

    def name(self) -> str:
        if not (token := self.take())[:1].isalpha():
            raise ValueError(f"a name expected, {token!r} found")
        return token

    def member(self) -> None:
        keyword, name = self.take(), self.name()
        if name in self.types or name in self.methods or name in self.errors:
            raise ValueError(f"{name} is defined twice")
        if keyword == "type":
            self.types[name] = self.fields_or_names()
        elif keyword == "method":
            parameters = self.struct()
            self.expect("->")
            self.methods[name] = Method(parameters, self.struct())
        elif keyword == "error":
            self.errors[name] = self.struct()
        else:
            raise ValueError(f"type, method or error expected, {keyword!r} found")

    def struct(self) -> Struct:
        if isinstance(kind := self.fields_or_names(), Struct):
            return kind
        raise ValueError("fields expected, an enumeration found")

    def fields_or_names(self) -> Struct | Enumeration:
        fields: dict[str, Kind] = {}
        names: list[str] = []
        self.expect("(")
        while self.peek() != ")":
            name = self.name()
            if name in fields or name in names:
                raise ValueError(f"{name} is there twice")
            if self.peek() == ":":
                self.take()
                fields[name] = self.kind()
            else:
                names.append(name)
            if self.peek() != ")":
                self.expect(",")
        self.take()
        if fields and names:
            raise ValueError(f"{names[0]} has no type")
        return Enumeration(tuple(names)) if names else Struct(fields)

    def kind(self) -> Kind:
        if (token := self.peek()) == "(":
            return self.fields_or_names()
        self.take()
        for prefix, kind in (("?", Maybe), ("[]", Array), ("[string]", Map)):
            if token == prefix:
                return kind(self.kind())
        if token in SCALARS:
            return Scalar(token)
        if not token[:1].isupper():
            raise ValueError(f"a type expected, {token!r} found")
        self.named.add(token)
        return Named(token, self.types)


def _tokens(text: str) -> list[str]:
    """Split a description; the last token is empty, so that there is always one to look at."""
    tokens, position = [], _match_end(_BLANK, text, 0)
    while position < len(text):
        if not (found := _TOKEN.match(text, position)):
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"line {line}: {text[position]!r} is no part of an interface")
        tokens.append(found[0])
        position = _match_end(_BLANK, text, found.end())
    return [*tokens, ""]


def _match_end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position
