"""Settings: what is right, what is wrong, and where."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crd.daemon.schedule import Schedule
from crd.errors import SettingsError
from crd.settings.load import changed_keys, check_target, load
from crd.settings.models import Settings, TargetSettings
from crd.settings.units import format_seconds, parse_bytes, parse_seconds

NOW = datetime(2026, 11, 28, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[3] / "config" / "crd.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "crd.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRD_ENGINE__WORKERS", "CRD_DAEMON__STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def uncommented() -> str:
    """Return the example with every key switched on."""
    text = EXAMPLE.read_text()
    return re.sub(r"^#(\[?[a-z_.]+\]?)(\s*=|$|\])", r"\1\2", text, flags=re.MULTILINE)


def test_the_example_shows_every_key_with_its_default() -> None:
    data = tomllib.loads(uncommented())
    web = data.pop("targets")["web"]
    defaults = Settings().model_dump(mode="json", exclude={"targets"})
    assert {section: set(keys) for section, keys in data.items()} == {
        section: set(keys) for section, keys in defaults.items()}
    assert Settings(**data).model_dump(mode="json", exclude={"targets"}) == defaults
    assert TargetSettings(**web).jitter == TargetSettings.model_fields["jitter"].default


def test_the_example_loads_as_it_is() -> None:
    assert load(EXAMPLE) == Settings()


@pytest.mark.parametrize(("text", "line", "says"), [
    ("[daemon]\n\n[archive]\nlevle = 3\n", 4, "did you mean level"),
    ("[archive]\nlevel = 0\n", 2, "archive.level"),
    ('[engine]\nworkers = "many"\n', 2, "engine.workers"),
    ('[engine]\nfreeze_timeout = "2 parsecs"\n', 2, "a duration such as"),
    ('[metrics]\nlisten = "nowhere"\n', 2, "metrics.listen"),
    ("[storage]\n", 1, "unknown key"),
    ('[catalog]\nurl = "mysql://crd:secret@db/crd"\n', 2, "postgresql+asyncpg://USER@HOST/DATABASE"),
    ('[archive]\nstore = "tape"\n', 2, "'local' or 's3'"),
    ('[s3]\nbucket = "s3://mine"\n', 2, "name of a bucket"),
    ('[s3]\nbucket = "mine"\nprefix = "/a/../b"\n', 3, "slashes between"),
    ('[s3]\nendpoint = "https://key:secret@host"\n', 2, "nothing follows"),
    ('[s3]\nwriter = "a/b"\n', 2, "such as a host has"),
    ('[s3]\nspool_size = "much"\n', 2, "a size such as"),
    ('[s3]\nsecret_key = "x"\n', 2, "unknown key"),
    ("[targets.web]\npid = 1\n", 1, "every, on_calendar, cron"),
    ('[targets.web]\npid = 1\ncomm = "x"\nevery = "1s"\n', 1, "pid and comm"),
    ('[targets.web]\npid = 1\ncron = "soon"\n', 3, "crontab(5)"),
    ('[targets.web]\npid = 1\non_calendar = "soon"\n', 3, "systemd.time(7)"),
    ('[targets.web]\npid = 1\nevery = "0s"\n', 3, "every"),
    ('[targets.web]\ncomm = "("\nevery = "1s"\n', 2, "no regular expression"),
    ('[targets.web]\nunit = "a/b"\nevery = "1s"\n', 2, "systemd.unit(5)"),
    ('[targets.web]\ncgroup = "/../b"\nevery = "1s"\n', 2, "cgroups(7)"),
    ('[targets.web]\ncgroup = "b"\nevery = "1s"\n', 2, "cgroups(7)"),
    ('[targets.web]\nunit = "b"\nevery = "1s"\nat_boot = "any"\n', 1, "give both"),
    ('[targets.web]\npid = 1\nevery = "1s"\nat_shutdown = true\n', 1, "may be another's"),
])
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        load(path)
    assert f"{path}:{line}" in refused.value.message
    assert says in refused.value.message
    assert "secret@" not in refused.value.message


@pytest.mark.parametrize("url", ["", "sqlite:////a/catalog.db", "sqlite+aiosqlite:///catalog.db",
                                 "postgresql+asyncpg://crd:secret@db/crd", "postgresql+asyncpg://crd@/crd?host=/tmp"])
def test_catalogs_that_can_be(tmp_path: Path, url: str) -> None:
    assert load(written(tmp_path, f'[catalog]\nurl = "{url}"\n')).catalog.url == url


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(written(tmp_path, "[archive]\nlevel = 0\nthreads = 0\n[x]\n"))
    assert len(refused.value.message.splitlines()) == 3


@pytest.mark.parametrize("text", ["a = ", "[daemon\n", '[targets."a b"]\npid = 1\nevery = "1s"\n'])
def test_unreadable_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        load(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path / "nothing.toml")
    assert "nothing.toml" in refused.value.message


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRD_ENGINE__WORKERS", "7")
    settings = load(written(tmp_path, '[engine]\nworkers = 3\nfreeze_timeout = "5s"\n'))
    assert settings.engine.workers == 7
    assert settings.engine.freeze_timeout == 5.0
    monkeypatch.setenv("CRD_ENGINE__WORKERS", "many")
    with pytest.raises(SettingsError) as refused:
        load(None)
    assert "CRD_ENGINE__WORKERS" in refused.value.message


def test_state_decides_where_archive_and_catalog_are(tmp_path: Path) -> None:
    settings = load(written(tmp_path, f'[daemon]\nstate_dir = "{tmp_path}"\n'))
    assert settings.archive_path == tmp_path / "archive"
    assert settings.catalog_url.endswith(f"{tmp_path}/catalog.db")


def test_targets_that_are_added_are_checked_alike() -> None:
    assert check_target("web", {"pid": 1, "every": "90s"}).every == 90
    with pytest.raises(SettingsError):
        check_target("web", {"pid": 1})
    with pytest.raises(SettingsError, match="target web: every: write a duration such as 30s"):
        check_target("web", {"pid": 1, "every": "soon"})
    with pytest.raises(SettingsError, match=r"target web: pid: .* 4194304"):
        check_target("web", {"pid": 1 << 23, "every": "90s"})


def test_units_and_control_groups_are_named_as_people_do() -> None:
    names = ("web", "web.service", "web.scope", r"a\x2db@c")
    assert [TargetSettings(unit=name, every="1s").unit for name in names] == [
        "web.service", "web.service", "web.scope", r"a\x2db@c.service"]
    assert TargetSettings(cgroup="/sys/fs/cgroup/system.slice/web.service/", every="1s").cgroup == (
        "/system.slice/web.service")


def test_what_has_changed_and_counts_at_the_next_start_only() -> None:
    old = Settings(archive={"level": 1}, engine={"workers": 1})
    new = Settings(archive={"level": 2}, engine={"workers": 2, "crid_file": "/x"}, retention={"keep": "last=1"})
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == ["engine.crid_file", "archive.level"]


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5min", 300), ("1.5h", 5400), ("250ms", 0.25), (7, 7),
                                               ("2d", 172800), ("3", 3)])
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "n_bytes"), [("2GiB", 2 << 30), ("512M", 512 << 20), ("100", 100), (5, 5)])
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 fortnight", "1s 2", None, True, -1, "99999d", "9" * 400, 10**400,
                                  float("inf"), float("nan")])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "-1", "1 foot", None, True, "1TiB", -1, "9" * 400, 10**400, float("inf")])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@given(st.floats(0, 36_500 * 86_400) | st.integers(0, 36_500 * 86_400).map(float))
def test_durations_are_written_as_they_are_read(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == seconds


@pytest.mark.parametrize("key", ["every", "jitter"])
def test_the_longest_duration_makes_a_schedule(key: str) -> None:
    settings = TargetSettings(**{"pid": 1, "every": "1d", key: "36500d"})
    assert Schedule.of("web", settings, NOW).after(NOW) > NOW
