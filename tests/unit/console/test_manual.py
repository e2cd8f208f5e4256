"""Manual pages say what the programs say, and man(7) understands them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crd import __main__
from crd.cli import main
from crd.settings.models import Settings

EXAMPLE = Path(__file__).parents[3] / "config" / "crd.toml"


def page(*words: str) -> str:
    """Print a page and have it formatted; no warning is let pass."""
    made = subprocess.run([sys.executable, "-m", "crd.console.manual", *words], capture_output=True, check=True)
    shown = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-P-cbou", "-rLL=200n"], input=made.stdout,
                           capture_output=True, check=True)
    assert shown.stderr == b""
    return shown.stdout.decode()


@pytest.mark.parametrize(("where", "commands"), [("crd.__main__:crd", __main__.COMMANDS),
                                                 ("crd.cli.main:crctl", main.COMMANDS)])
def test_all_commands_are_told_of(where: str, commands: dict[str, object]) -> None:
    text = page(where, "1")
    program = where.partition(":")[2]
    for name in commands:
        assert f"   {program} {name} " in text
    assert text.count("Exit status: 0 ") > len(commands)
    assert r"\b" not in text


def test_all_settings_are_told_of() -> None:
    text = page(str(EXAMPLE), "5")
    for section, keys in Settings().model_dump(exclude={"targets"}).items():
        assert f"[{section}]" in text
        for key in keys:
            assert f"       {key} = " in text
    assert "CRD_ENGINE__WORKERS=4" in text
