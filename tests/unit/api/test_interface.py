from __future__ import annotations

import pytest
from varlink.scanner import Interface as VarlinkInterface

from crd.api import interface
from crd.api.protocol import FAILED, INTERFACE, SERVICE, ServiceError

TEXT = """
# A comment (with brackets).
interface org.example.more-x
type Colour (red, green)
type Point (x: int, y: ?float, label: ?string)  # behind it
method Draw(
  points: []Point, # where
  colour: ?Colour,
  names: [string][]string,
  nested: ?(deep: bool),
  anything: ?object
) -> (drawn: int)
method Nothing() -> ()
error Failed (code: string)
"""


@pytest.fixture
def example() -> interface.Interface:
    return interface.parse(TEXT)


def test_members(example: interface.Interface) -> None:
    assert example.name == "org.example.more-x"
    assert set(example.methods) == {"Draw", "Nothing"}
    assert set(example.types) == {"Colour", "Point"}
    assert set(example.errors) == {"Failed"}
    assert example.text == TEXT


def test_what_is_right_comes_back_with_every_field(example: interface.Interface) -> None:
    draw = example.methods["Draw"].parameters
    checked = draw.check({"points": [{"x": 1}, {"x": -2, "y": 3, "label": "ä"}], "names": {"a": ["b"]}})
    assert checked == {
        "points": [{"x": 1, "y": None, "label": None}, {"x": -2, "y": 3, "label": "ä"}],
        "colour": None, "names": {"a": ["b"]}, "nested": None, "anything": None,
    }
    assert draw.check({"points": [], "names": {}, "colour": "red", "nested": {"deep": True}, "anything": {"a": [1]}})
    assert example.methods["Nothing"].parameters.check({}) == {}


@pytest.mark.parametrize(("change", "where"), [
    ({"points": None}, "points"),
    ({"points": {}}, "points"),
    ({"points": [1]}, "points[0]"),
    ({"points": [{"x": 1}, {}]}, "points[1].x"),
    ({"points": [{"x": True}]}, "points[0].x"),
    ({"points": [{"x": 1.0}]}, "points[0].x"),
    ({"points": [{"x": 2**63}]}, "points[0].x"),
    ({"points": [{"x": -2**63 - 1}]}, "points[0].x"),
    ({"points": [{"x": 1, "y": "1"}]}, "points[0].y"),
    ({"points": [{"x": 1, "y": False}]}, "points[0].y"),
    ({"points": [{"x": 1, "label": "a\0b"}]}, "points[0].label"),
    ({"points": [{"x": 1, "z": 1}]}, "points[0].z"),
    ({"colour": "blue"}, "colour"),
    ({"colour": ["red"]}, "colour"),
    ({"names": []}, "names"),
    ({"names": {"a": "b"}}, "names[a]"),
    ({"nested": {"deep": 1}}, "nested.deep"),
    ({"nested": {}}, "nested.deep"),
    ({"anything": []}, "anything"),
    ({"more": None}, "more"),
])
def test_what_is_wrong_is_named(example: interface.Interface, change: dict[str, object], where: str) -> None:
    with pytest.raises(ServiceError) as refused:
        example.methods["Draw"].parameters.check({"points": [], "names": {}, **change})
    assert refused.value.name == f"{SERVICE}.InvalidParameter"
    assert refused.value.parameters == {"parameter": where}


@pytest.mark.parametrize("text", [
    "", "interface", "interface a.b method", "interface a.b method X(", "interface a.b method X() -> (",
    "interface a.b method X()", "interface a.b method X(a: Unknown) -> ()", "interface a.b method X(a: text) -> ()",
    "interface a.b type X (a, b: int)", "interface a.b type X (a: int, a: int)", "interface a.b type X (a, a)",
    "interface a.b type X (a: int) method X() -> ()", "interface a.b method X(a, b) -> ()", "interface a.b thing X ()",
    "interface a.b type X (a: int;)", "interface a.b type X (a: ?)", "interface a.b type X (a int)", "interface ( )",
])
def test_broken_descriptions_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        interface.parse(text)


@pytest.mark.parametrize("name", [INTERFACE, SERVICE])
def test_the_reference_parser_reads_the_same_out_of_ours(name: str) -> None:
    ours = interface.load(name)
    theirs = VarlinkInterface(ours.text)
    assert ours.name == theirs.name == name
    assert set(theirs.members) == {*ours.methods, *ours.types, *ours.errors}
    for method, found in ours.methods.items():
        assert list(theirs.members[method].in_type.fields) == list(found.parameters.fields)
        assert list(theirs.members[method].out_type.fields) == list(found.reply.fields)


def test_our_interface_has_the_error_that_the_server_sends() -> None:
    assert FAILED.removeprefix(f"{INTERFACE}.") in interface.load(INTERFACE).errors
