"""The rules that no linter knows: sizes, error codes, words."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crd.errors import ERRORS_BY_CODE, CrdError, Obstacle, TargetUnsupported

ROOT = Path(__file__).parent.parent
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "manager"}


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).exists()]


def all_errors(kind: type[CrdError] = CrdError) -> list[type[CrdError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in all_errors(child))]


def test_modules_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines())
             for path in tracked("crd/*.py", "crd/*.c", "crd/*.S")}
    assert sizes
    too_long = {path: size for path, size in sizes.items() if size > 400 and path != "crd/errors.py"}
    assert not too_long


def test_functions_are_small() -> None:
    too_long = []
    for path in tracked("crd/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.body[0].lineno + 1
                if lines > 60:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert not too_long


def test_no_module_without_a_theme() -> None:
    names = {path.stem for path in tracked("crd/*.py", "crd/*.c")}
    assert not names & FORBIDDEN_NAMES


def test_error_codes_are_unique_and_documented() -> None:
    errors = all_errors()
    repeated = [code for code, times in Counter(error.code for error in errors).items() if times > 1]
    assert not repeated
    assert len(ERRORS_BY_CODE) == len(errors)
    assert all(error.__doc__ for error in errors)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_errors_survive_the_socket(kind: type[CrdError]) -> None:
    error = kind("what went wrong", hint="what to do")
    if isinstance(error, TargetUnsupported):
        error.reasons = (Obstacle("fd.terminal", "fd 0", "is a terminal", "redirect it"),)
    rebuilt = CrdError.from_json(error.to_json())
    assert type(rebuilt) is kind
    assert rebuilt.to_json() == error.to_json()


@pytest.mark.parametrize("details", [
    {"reasons": [{"code": "fd.terminal", "colour": "green"}]}, {"reasons": 5}, {"self": 1}], ids=str)
def test_of_details_that_do_not_fit_nothing_is_left(details: dict[str, Any]) -> None:
    rebuilt = CrdError.from_json({"error": TargetUnsupported.code, "message": "what went wrong", **details})
    assert type(rebuilt) is TargetUnsupported


def test_what_is_no_error_is_one_of_ours() -> None:
    assert type(CrdError.from_json({"error": ["x"]})) is CrdError


def test_no_absolute_path_of_a_machine_and_no_registry() -> None:
    words = ("/work" + "/", "/root" + "/", "pypi" + ".org", "deb.debian" + ".org", "npmjs" + ".org")
    found = [f"{path.relative_to(ROOT)}: {word}" for path in tracked() if path.suffix not in {".img", ".gz"}
             for word in words if word in path.read_text(errors="replace")]
    assert not found
