from __future__ import annotations

import pytest

from crd.image.vdso import without_padding
from crd.target import procfs
from crd.target.vdso import own_vdso


def test_ours_is_a_whole_elf_image() -> None:
    area = own_vdso()
    assert area.startswith(b"\x7fELF")
    assert 1000 < len(without_padding(area)) <= len(area)
    assert not len(area) % 4096


def test_where_proc_does_not_show_it_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "PROC", "/nowhere")
    assert own_vdso() == b""
