"""The daemonless commands of crd, as a user runs them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import BIN, eventually
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


def crd(*words: str | Path, home: Path, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([BIN / "crd", *words], env={**os.environ, "CRD_ENGINE__CRID_FILE": str(home / "crid")},
                          capture_output=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr.decode()
    return done


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(done.stderr)
    assert error["message"]
    return error


@pytest.fixture
def program(tmp_path: Path) -> Iterator[CountingProgram]:
    with CountingProgram(tmp_path) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path, program: CountingProgram) -> Path:
    path = tmp_path / "file.image"
    crd("checkpoint", str(program.pid), "-o", path, home=tmp_path)
    return path


def test_the_target_runs_on_and_the_image_is_private(program: CountingProgram, image: Path) -> None:
    program.assert_unharmed()
    assert image.stat().st_mode & 0o777 == 0o600
    program.assert_counted_without_gap_since(0)


def test_figures_for_programs(tmp_path: Path, program: CountingProgram) -> None:
    path = tmp_path / "a.image"
    figures = json.loads(crd("checkpoint", str(program.pid), "-o", path, "--json", home=tmp_path).stdout)
    assert figures["crid"] == 1
    assert figures["pid"] == program.pid
    assert figures["tasks"] == figures["threads"] == 1
    assert figures["image_bytes"] == path.stat().st_size
    assert figures["memory_bytes"] > 100_000
    assert 0 < figures["stop_seconds"] < figures["duration_seconds"]


def test_crids_are_never_given_twice_nor_for_a_failure(tmp_path: Path, program: CountingProgram) -> None:
    crids = []
    for number in range(3):
        done = crd("checkpoint", str(program.pid), "-o", tmp_path / f"{number}", "--json", home=tmp_path)
        crids.append(json.loads(done.stdout)["crid"])
        crd("checkpoint", str(program.pid), "-o", "/dev/full", home=tmp_path, status=1)
    assert crids == [1, 2, 3]


def test_through_pipes_without_a_file(tmp_path: Path, program: CountingProgram) -> None:
    stream = crd("checkpoint", str(program.pid), "-o", "-", "--kill", home=tmp_path).stdout
    program.process.wait(timeout=60)
    lines = len(program.counts())
    subprocess.run([BIN / "crd", "restart", "-i", "-"], input=stream, check=True, timeout=60, capture_output=True)
    eventually("it to count on", lambda: len(program.counts()) > lines)
    program.assert_counted_without_gap_since(0)


def test_restart_twice_from_the_same_image(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    for _ in range(3):
        program.kill()
        lines = len(program.counts())
        restarted = json.loads(crd("restart", "-i", image, "--json", home=tmp_path).stdout)
        assert restarted["root_pid"] == program.pid
        eventually("it to count on", lambda so_far=lines: len(program.counts()) > so_far + 3)
        program.assert_counted_without_gap_since(lines)


def test_a_restarted_program_can_be_checkpointed_again(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    current = image
    for number in range(5):
        program.kill()
        crd("restart", "-i", current, home=tmp_path)
        program.assert_unharmed()
        current = tmp_path / f"generation-{number}"
        crd("checkpoint", str(program.pid), "-o", current, home=tmp_path)
        program.assert_unharmed()


def test_copies_beside_the_living_original(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    copies = [json.loads(crd("restart", "-i", image, option, "--json", home=tmp_path).stdout)["root_pid"]
              for option in ("--pidns", "--pidns", "--new-pids")]
    try:
        assert len({program.pid, *copies}) == 4
        for pid in copies:
            assert Path(f"/proc/{pid}/comm").read_text() == Path(f"/proc/{program.pid}/comm").read_text()
            inner = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                         if line.startswith("NSpid"))
            assert pid == copies[2] or inner.split()[-1] == str(program.pid)
        program.assert_unharmed()
    finally:
        for pid in copies:
            os.kill(pid, signal.SIGKILL)


def test_wait_mirrors_the_exit_status(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    program.kill()
    waiting = subprocess.Popen([BIN / "crd", "restart", "-i", image, "--wait"], stdout=subprocess.DEVNULL)
    eventually("the restart", lambda: program.is_there() and program.status()["TracerPid"] == "0")
    program.assert_unharmed()
    os.kill(program.pid, signal.SIGTERM)
    assert waiting.wait(timeout=60) == 128 + signal.SIGTERM


def test_a_pid_file_names_the_root(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    program.kill()
    crd("restart", "-i", image, "--root", tmp_path / "restarted.pid", home=tmp_path)
    assert (tmp_path / "restarted.pid").read_text().strip() == str(program.pid)
    program.assert_unharmed()


def test_a_pid_in_use_is_refused_with_its_owner(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    error = error_of(crd("restart", "-i", image, "--json", home=tmp_path, status=14))
    assert error["error"] == "restart.pid-in-use"
    assert str(program.pid) in error["message"]
    program.assert_unharmed()


def test_an_image_cut_anywhere_restarts_nothing(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    program.kill()
    content = image.read_bytes()
    chance = random.Random(3)
    for length in [0, 7, 8, 48, 1000, len(content) - 1, *(chance.randrange(len(content)) for _ in range(10))]:
        cut = tmp_path / "cut.image"
        cut.write_bytes(content[:length])
        error = error_of(crd("restart", "-i", cut, "--json", home=tmp_path, status=1))
        assert error["error"] == "image.truncated", (length, error)
        assert not program.is_there()


def test_a_damaged_image_never_leaves_a_task_behind(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    program.kill()
    content = image.read_bytes()
    chance = random.Random(5)
    for _ in range(25):
        damaged = bytearray(content)
        damaged[chance.randrange(6000)] ^= 1 << chance.randrange(8)
        (tmp_path / "damaged.image").write_bytes(damaged)
        done = subprocess.run([BIN / "crd", "restart", "-i", tmp_path / "damaged.image", "--json"],
                              capture_output=True, check=False, timeout=60)
        if done.returncode:
            assert error_of(done)["error"].split(".")[0] in {"image", "restart", "engine", "native"}
            assert not program.is_there()
        else:
            program.kill()


def test_inspect_shows_what_is_in_it(program: CountingProgram, image: Path, tmp_path: Path) -> None:
    shown = json.loads(crd("inspect", image, "--json", home=tmp_path).stdout)
    assert str(program.pid) in json.dumps(shown)
    assert "count.log" in json.dumps(shown)
    text = crd("inspect", image, home=tmp_path).stdout.decode()
    assert "count.log" in text
    image.write_bytes(image.read_bytes()[:-3])
    crd("inspect", image, home=tmp_path, status=1)


def test_check_names_every_obstacle_and_stops_nobody(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sh", "-c", "sleep 60 & exec sleep 60"], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually("its child", lambda: Path(f"/proc/{sleeper.pid}/task/{sleeper.pid}/children").read_text())
        report = json.loads(crd("check", str(sleeper.pid), "--json", home=tmp_path, status=13).stdout)
        codes = {obstacle["code"] for obstacle in report["obstacles"]}
        assert len(codes) >= 2
        assert all(obstacle["reason"] and obstacle["remedy"] for obstacle in report["obstacles"])
        refused = error_of(crd("checkpoint", str(sleeper.pid), "-o", tmp_path / "x", "--json", home=tmp_path,
                               status=13))
        assert {obstacle["code"] for obstacle in refused["reasons"]} == codes
        assert not (tmp_path / "x").exists()
    finally:
        os.killpg(sleeper.pid, signal.SIGKILL)
        sleeper.wait()
        assert sleeper.stdin
        sleeper.stdin.close()


def test_a_failed_checkpoint_leaves_the_old_file(tmp_path: Path, image: Path) -> None:
    old = image.read_bytes()
    crd("checkpoint", "999999999", "-o", image, home=tmp_path, status=11)
    assert image.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir() if "image" in path.name) == [image.name]


def test_a_killed_checkpoint_harms_nobody(tmp_path: Path) -> None:
    chance = random.Random(13)
    with CountingProgram(tmp_path, ballast_mib=30) as program:
        for number in range(25):
            running = subprocess.Popen([BIN / "crd", "checkpoint", str(program.pid), "-o", tmp_path / f"{number}.img"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       env={**os.environ, "CRD_ENGINE__CRID_FILE": str(tmp_path / "crid")})
            time.sleep(chance.uniform(0.1, 0.5))
            with suppress(ProcessLookupError):
                running.kill()
            running.wait()
            eventually("tracing to end", lambda: program.status()["TracerPid"] == "0")
            program.assert_unharmed()
        program.assert_counted_without_gap_since(0)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text()
        assert not children


def test_features_say_what_is_missing(tmp_path: Path) -> None:
    features = json.loads(crd("features", "--json", home=tmp_path).stdout)
    assert features
    assert "pagemap" in json.dumps(features).lower()
