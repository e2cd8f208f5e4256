from __future__ import annotations

import pytest

from crd.archive.stores import spooled


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "_PAUSE_SECONDS", (0.02, 0.05))
