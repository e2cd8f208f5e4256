"""crd as systemd runs it: a machine with a real systemd as PID 1, on which one test follows the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import eventually
from tests.support.machine import CHECKOUT, Machine
from tests.support.workload import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

CRD = "crd.service"
UNITS = ("crd.service", "crd.socket", "crd-engine.socket", "crd-engine@.service", "crd-shutdown@web.service.service")
EXPOSURE_MAX = "40"
"""In tenths."""
CAP_DAC_READ_SEARCH = 1 << 2
COUNTING = """
[Service]
Type=exec
ExecStart={python} -S -c {program} 8
WorkingDirectory=/srv
"""
TELLING = """
import itertools, socket, time
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.connect("/dev/log")
for number in itertools.count():
    print(f"<5>said {number}", flush=True)
    log.send(f"<13>teller: sent {number}".encode())
    time.sleep(0.05)
"""
TARGET = '[targets.counting]\nunit = "counting"\non_calendar = "2100-01-01"\n'


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine")) as booted:
        booted.say("systemctl", "enable", "--now", CRD)
        yield booted
        for unit in ("crd*", "counting"):
            print(booted.journal("-u", unit))


@pytest.fixture
def counting(machine: Machine) -> Iterator[Counting]:
    running = Counting(machine)
    yield running
    running.end()


class Counting:
    """A service that counts, one number a line, in /srv/count.log."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._log = machine.root / "srv/count.log"
        self._log.unlink(missing_ok=True)
        self.pid = started(machine, "counting", COUNTING, PROGRAM)
        eventually("it to count", self.counts)

    def counts(self) -> list[int]:
        return [int(line) for line in self._log.read_text().split("\n")[:-1]] if self._log.exists() else []

    def is_there(self) -> bool:
        return self._machine.run("kill", "-0", str(self.pid)).returncode == 0

    def kill(self) -> None:
        self._machine.say("kill", "-KILL", str(self.pid))
        eventually("it to end", lambda: not self.is_there())

    def assert_counts_on(self) -> None:
        lines = len(self.counts())
        eventually("it to count on", lambda: len(self.counts()) > lines + 3)
        status = self._machine.say("cat", f"/proc/{self.pid}/status")
        assert "\nTracerPid:\t0\n" in status

    def cgroup(self) -> str:
        return self._machine.say("cat", f"/proc/{self.pid}/cgroup").rpartition("/")[2]

    def end(self) -> None:
        if self.is_there():
            self.kill()


def started(machine: Machine, name: str, unit: str, program: str) -> int:
    """Start a service that is a Python program; return its pid."""
    python, program = Path(sys._base_executable).resolve(), json.dumps(program).replace("%", "%%")  # type: ignore[attr-defined]
    (machine.root / f"etc/systemd/system/{name}.service").write_text(unit.format(python=python, program=program))
    machine.say("systemctl", "daemon-reload")
    return start(machine, name)


def start(machine: Machine, name: str) -> int:
    machine.say("systemctl", "start", name)
    return int(machine.show(name, "MainPID"))


CALLING = """
import ctypes, itertools, os, time
libc = ctypes.CDLL(None)
for turn in itertools.count(1):
    while not os.path.exists(f"go{turn}"):
        time.sleep(0.01)
    image = os.open("image", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open("new", "w") as file:
        print(libc.syscall(387, 0, image, 0), file=file)
    os.rename("new", f"returned{turn}")
    os.close(image)
"""


def crctl(machine: Machine, *words: str) -> Any:
    return json.loads(machine.say("crctl", *words, "--json"))


def daemon_pid(machine: Machine) -> int:
    return int(machine.show(CRD, "MainPID"))


def restarted(machine: Machine, counting: Counting) -> Any:
    """Take an image, kill the program and have it restarted; return the request."""
    image = crctl(machine, "checkpoint", "--pid", str(counting.pid))
    counting.kill()
    request = crctl(machine, "restart", str(image["crid"]), "--wait")
    assert request["state"] == "done", request
    assert request["root_pid"] == counting.pid
    counting.assert_counts_on()
    return request


def test_the_units_are_right_and_the_daemon_is_not_exposed(machine: Machine) -> None:
    verified = machine.run("systemd-analyze", "verify", *UNITS)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    subprocess.run(["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager",
                    CHECKOUT / "systemd" / CRD], check=True, capture_output=True)


def test_it_runs_with_one_capability_and_offers_all_that_root_can_have(machine: Machine) -> None:
    assert machine.show(CRD, "ActiveState") == "active"
    lines = machine.say("cat", f"/proc/{daemon_pid(machine)}/status").split("\n")
    status = dict(line.split(":\t", 1) for line in lines)
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == CAP_DAC_READ_SEARCH
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    offered = crctl(machine, "status")["features"]
    assert offered == {feature["name"]: feature["available"]
                       for feature in json.loads(machine.say("crd", "features", "--json"))}
    assert machine.show(CRD, "StatusText").startswith("0 targets")
    assert machine.say("stat", "-c", "%a %U %G", "/run/crd/crd.sock", "/run/crd/engine.sock", "/var/lib/crd") == (
        "660 root crd\n600 root root\n700 root root")


def test_the_engine_has_what_the_daemon_is_kept_from(machine: Machine) -> None:
    """A Linux-CR kernel is known by its symbols, and freezes by the freezer cgroup."""
    engine = machine.show("crd-engine@*.service", "MainPID").split()[0]

    def reaches(pid: int | str) -> tuple[bool, bool]:
        mounts = {line.split()[4]: line.split()[5].split(",")
                  for line in machine.say("cat", f"/proc/{pid}/mountinfo").split("\n")}
        inside = "nsenter", f"--target={pid}", "--mount"
        return "rw" in mounts["/sys/fs/cgroup"], bool(machine.say(*inside, "head", "-c1", "/proc/kallsyms"))

    assert reaches(daemon_pid(machine)) == (False, False)
    assert reaches(engine) == (True, True)


def test_the_socket_starts_it(machine: Machine) -> None:
    machine.say("systemctl", "stop", CRD)
    assert machine.show(CRD, "ActiveState") == "inactive"
    assert crctl(machine, "status")["pid"] == daemon_pid(machine)
    assert machine.show(CRD, "ActiveState") == "active"


def metrics_listener(machine: Machine) -> str:
    """Return the inode of the socket that listens at port 9643 (proc_pid_net(5)); there is exactly one."""
    lines = machine.say("cat", f"/proc/{daemon_pid(machine)}/net/tcp").split("\n")[1:]
    listening = [line.split()[9] for line in lines if line.split()[1:4:2] == [f"0100007F:{9643:04X}", "0A"]]
    assert len(listening) == 1
    return listening[0]


def test_the_metrics_listener_outlives_the_daemon(machine: Machine) -> None:
    inode = metrics_listener(machine)
    machine.say("systemctl", "restart", CRD)
    assert metrics_listener(machine) == inode
    killed(machine)
    assert metrics_listener(machine) == inode


def killed(machine: Machine) -> None:
    """Kill the daemon, and wait for another."""
    before = daemon_pid(machine)
    machine.say("systemctl", "kill", "--kill-whom=main", "--signal=KILL", CRD)
    eventually("another daemon", lambda: machine.show(CRD, "ActiveState") == "active"
               and daemon_pid(machine) not in {0, before})
    machine.say("systemctl", "reset-failed", CRD)


def test_what_targets_write_is_noted_beyond_the_daemon(machine: Machine) -> None:
    program = "import os, signal\nkept = [os.urandom(4096) for _ in range(4096)]\nsignal.pause()\n"
    started(machine, "still", "[Service]\nType=exec\nExecStart={python} -S -c {program}\n", program)
    machine.say("crctl", "target", "add", "still", "--unit", "still", "--on-calendar", "2100-01-01")

    def read_bytes() -> int:
        image = crctl(machine, "checkpoint", "still")
        crctl(machine, "verify", str(image["crid"]))
        return int(image["memory_bytes"])

    whole, since = read_bytes(), read_bytes()
    assert since < whole / 2, "nothing is noted at all"
    machine.say("systemctl", "restart", CRD)
    assert read_bytes() < whole / 2
    killed(machine)
    assert read_bytes() < whole / 2
    machine.say("systemctl", "stop", CRD)
    assert read_bytes() > whole / 2, "who keeps notes while there is no daemon?"
    assert read_bytes() < whole / 2
    machine.say("crctl", "target", "remove", "still")
    machine.say("systemctl", "stop", "still")


def test_a_program_under_crctl_run_makes_its_calls_to_the_next_daemon(machine: Machine) -> None:
    unit = "[Service]\nType=exec\nWorkingDirectory=/srv\nExecStart=/usr/bin/crctl run -- {python} -S -c {program}\n"
    started(machine, "calling", unit, CALLING)

    def returned(turn: int) -> int:
        (machine.root / f"srv/go{turn}").touch()
        path = machine.root / f"srv/returned{turn}"
        eventually("its return", path.exists)
        return int(path.read_text())

    assert returned(1) > 0
    machine.say("systemctl", "restart", CRD)
    assert returned(2) > 0
    killed(machine)
    assert returned(3) > 0
    machine.say("systemctl", "stop", CRD)
    assert returned(4) == -1
    machine.say("systemctl", "stop", "calling")


def test_a_restarted_program_lives_in_a_scope_of_its_own(machine: Machine, counting: Counting) -> None:
    report = machine.run("crctl", "check", str(counting.pid))
    assert report.returncode == 0, report.stdout
    request = restarted(machine, counting)
    scope = f"crd-{request['crid']}-{request['number']}.scope"
    assert counting.cgroup() == scope
    status = machine.say("cat", f"/proc/{counting.pid}/status")
    assert "\nSeccomp:\t0\n" in status
    assert "\nNoNewPrivs:\t0\n" in status
    for how in ("stop", "restart"):
        machine.say("systemctl", how, CRD)
        counting.assert_counts_on()
    again = crctl(machine, "checkpoint", "--pid", str(counting.pid))
    assert again["crid"] > request["crid"], "it can be saved again"
    machine.say("systemctl", "stop", scope)
    assert not counting.is_there()


def test_without_a_bus_it_lives_in_the_engines_unit_and_goes_on_too(machine: Machine, counting: Counting) -> None:
    machine.say("systemctl", "mask", "--runtime", "--now", "dbus.socket", "dbus.service")
    try:
        request = restarted(machine, counting)
        assert counting.cgroup().startswith("crd-engine@")
        assert "no bus" in machine.journal("CRD_EVENT=restart.no-scope")
        assert f'"CRD_REQUEST":"{request["number"]}"' in machine.journal("CRD_EVENT=restart.done", "-o", "json")
        machine.say("systemctl", "stop", CRD, "crd-engine@*.service")
        counting.assert_counts_on()
    finally:
        machine.say("systemctl", "unmask", "--runtime", "dbus.socket", "dbus.service")
        machine.say("systemctl", "start", "dbus.socket")


def test_a_service_that_tells_the_journal_goes_on_telling_it(machine: Machine) -> None:
    unit = "[Service]\nType=exec\nSyslogIdentifier=teller\nExecStart={python} -S -c {program}\n"
    pid = started(machine, "telling", unit, TELLING)

    def told(*words: str) -> list[dict[str, str]]:
        lines = machine.journal("-o", "json", "SYSLOG_IDENTIFIER=teller", *words).splitlines()
        return [json.loads(line) for line in lines]

    eventually("it to begin", lambda: len(told()) > 4)
    machine.say("crctl", "target", "add", "telling", "--unit", "telling", "--on-calendar", "2100-01-01")
    image = crctl(machine, "checkpoint", "telling", "--kill")
    eventually("its end", lambda: machine.show("telling", "ActiveState") in {"inactive", "failed"})
    request = crctl(machine, "restart", str(image["crid"]), "--wait")
    assert (request["state"], request["root_pid"]) == ("done", pid), request
    scope = f"crd-{request['crid']}-{request['number']}.scope"
    later = eventually("what it says then", lambda: told(f"_SYSTEMD_UNIT={scope}", "_TRANSPORT=stdout")[4:])
    assert {(entry["PRIORITY"], entry["_PID"], entry["_UID"]) for entry in later} == {("5", str(pid), "0")}
    machine.say("systemctl", "stop", scope)
    machine.say("crctl", "target", "remove", "telling")
    for transport, verb in (("stdout", "said"), ("syslog", "sent")):
        messages = [entry["MESSAGE"] for entry in told(f"_TRANSPORT={transport}")]
        assert messages == [f"{verb} {number}" for number in range(len(messages))], "each is told, and once"


def test_a_reload_takes_over_all_or_nothing(machine: Machine, counting: Counting) -> None:
    settings = machine.root / "etc/crd/crd.toml"
    before = settings.read_text()
    machine.say("systemctl", "start", CRD)
    pid = daemon_pid(machine)
    settings.write_text(f"{TARGET}[archive]\nlevel = 3\n")
    assert "Targets: counting" in machine.say("crd", "config", "check")
    machine.say("systemctl", "reload", CRD)
    assert [target["unit"] for target in crctl(machine, "targets")] == ["counting.service"]
    assert crctl(machine, "reload") == {"targets": 1, "waiting": ["archive.level"]}
    image = crctl(machine, "checkpoint", "counting")
    assert (image["pid"], image["target"]) == (counting.pid, "counting")
    assert f'"CRD_CRID":"{image["crid"]}"' in machine.journal("CRD_TARGET=counting", "-o", "json")

    settings.write_text('[targets.another]\npid = 1\nevery = "1h"\n[engine]\nworkers = 0\n')
    assert machine.run("crd", "config", "check").returncode == 2
    assert machine.run("systemctl", "reload", CRD).returncode != 0
    assert "/etc/crd/crd.toml:5: engine.workers" in machine.journal("-u", CRD)
    assert [target["name"] for target in crctl(machine, "targets")] == ["counting"]

    settings.write_text(before)
    machine.say("systemctl", "reload", CRD)
    assert crctl(machine, "targets") == []
    assert daemon_pid(machine) == pid


def test_who_asks_a_daemon_that_cannot_start_hears_why_at_once(machine: Machine) -> None:
    settings = machine.root / "etc/crd/crd.toml"
    good = settings.read_text()
    machine.say("systemctl", "stop", CRD)
    settings.write_text("[daemon]\nnonsense = 1\n")
    asked = machine.run("crctl", "status")
    assert asked.returncode == 10
    assert "crd.toml:2: daemon.nonsense: unknown key" in asked.stderr
    eventually("systemd to see it", lambda: machine.show(CRD, "ActiveState") == "failed")
    assert machine.show(CRD, "NRestarts") == "0"
    settings.write_text(good)
    assert crctl(machine, "status")["pid"] == daemon_pid(machine)


def test_a_stop_in_the_middle_of_a_checkpoint_harms_nobody(machine: Machine, counting: Counting) -> None:
    machine.say("crctl", "checkpoint", "--pid", str(counting.pid), "--no-wait")
    machine.say("systemctl", "stop", CRD)
    counting.assert_counts_on()
    assert all(image["state"] == "ok" for image in crctl(machine, "images"))
    for image in crctl(machine, "images"):
        crctl(machine, "verify", str(image["crid"]))


def test_a_request_outlives_a_daemon_that_is_killed(machine: Machine, counting: Counting) -> None:
    image = crctl(machine, "checkpoint", "--pid", str(counting.pid))
    counting.kill()
    before = daemon_pid(machine)
    number = crctl(machine, "restart", str(image["crid"]))["number"]
    machine.say("systemctl", "kill", "--kill-whom=main", "--signal=KILL", CRD)
    eventually("another daemon", lambda: daemon_pid(machine) not in {0, before})
    eventually("the request to end",
               lambda: crctl(machine, "request", "show", str(number))["state"] in {"done", "failed"})
    if crctl(machine, "request", "show", str(number))["state"] == "failed":  # it was killed while it made the tasks
        crctl(machine, "restart", str(image["crid"]), "--wait")
    counting.assert_counts_on()
    counts = counting.counts()
    assert {*counts} == {*range(1, max(counts) + 1)}, "it was restarted from where the image was taken"


def test_the_watchdog_ends_a_daemon_whose_engine_hangs(machine: Machine) -> None:
    override = machine.root / f"etc/systemd/system/{CRD}.d/watchdog.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nWatchdogSec=6s\n")
    machine.say("systemctl", "daemon-reload")
    machine.say("systemctl", "restart", CRD)
    machine.say("systemctl", "reset-failed", CRD)
    before = daemon_pid(machine)
    machine.say("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "crd-engine@*.service")
    eventually("it to be ended", lambda: daemon_pid(machine) not in {0, before})
    assert "unwell: the engine does not answer" in machine.journal(f"_PID={before}")
    assert "Watchdog timeout" in machine.journal("-u", CRD)
    assert crctl(machine, "status")["pid"] != before
    machine.say("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "crd-engine@*.service")
    assert machine.run("crctl", "check", "1").returncode == 13, "an engine that has ended is replaced"
    shutil.rmtree(override.parent)
    machine.say("systemctl", "daemon-reload")


def test_an_upgrade_harms_no_restarted_program(machine: Machine, counting: Counting) -> None:
    restarted(machine, counting)
    settings = machine.root / "etc/crd/crd.toml"
    settings.write_text(TARGET)
    inode = (machine.root / "usr/lib/crd").stat().st_ino
    machine.make("install")
    assert (machine.root / "usr/lib/crd").stat().st_ino != inode
    assert settings.read_text() == TARGET
    before, images = daemon_pid(machine), crctl(machine, "images")
    machine.say("systemctl", "daemon-reload")
    machine.say("systemctl", "try-restart", CRD)
    assert daemon_pid(machine) != before
    assert crctl(machine, "images") == images
    counting.assert_counts_on()


def guards(machine: Machine) -> set[str]:
    lines = machine.say("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "crd-shutdown@*")
    return {line.split()[0] for line in lines.splitlines()}


def test_a_target_goes_on_over_a_reboot_and_once(machine: Machine, counting: Counting) -> None:
    machine.say("systemctl", "start", CRD)
    refused = machine.run("crctl", "target", "add", "pid", "--pid", str(counting.pid), "--every", "1h", "--at-shutdown")
    assert (refused.returncode, "at_shutdown" in refused.stderr) == (2, True)
    machine.say("crctl", "target", "add", "lasting", "--unit", "counting", "--on-calendar", "2100-01-01",
                "--at-shutdown", "--at-boot", "any")
    unit, number = "counting.service", max((request["number"] for request in crctl(machine, "requests")), default=0)
    for turn in range(2):
        eventually("the guard", lambda unit=unit: f"crd-shutdown@{unit}.service" in guards(machine))
        machine.say("systemctl", "restart", CRD)
        assert machine.say("crctl", "save-for-shutdown", unit) == "", "the host is not going down"
        counting.assert_counts_on()
        machine.shut_down()
        lines = len(counting.counts())
        machine.boot()
        [request] = [request for request in crctl(machine, "requests") if request["number"] > number]
        number = request["number"]
        ended = eventually("its end", lambda number=number: _ended(machine, number))
        assert (ended["state"], ended["pids"]) == ("done", "any"), ended
        assert crctl(machine, "show", str(ended["crid"]))["tags"] == ["shutdown"]
        counting.pid = ended["root_pid"]
        counting.assert_counts_on()
        counts = counting.counts()
        assert counts[:lines + 1] == [*range(1, lines + 2)], f"turn {turn}: each number once, over the shutdown too"
        unit = f"crd-{ended['crid']}-{number}.scope"
        assert counting.cgroup() == unit
        assert crctl(machine, "checkpoint", "lasting")["pid"] == counting.pid, "it is the target yet"
    counting.kill()
    for end in (lambda: machine.say("systemctl", "restart", CRD), lambda: killed(machine)):
        end()
        assert crctl(machine, "status")["queue"]["queued"] == 0
        assert crctl(machine, "requests")[0]["number"] == number
        assert not counting.is_there()
    machine.say("crctl", "target", "remove", "lasting")
    eventually("the guards to go", lambda: not guards(machine))


def _ended(machine: Machine, number: int) -> Any:
    request = crctl(machine, "request", "show", str(number))
    return request if request["state"] in {"done", "failed"} else None


def test_what_others_have_started_after_a_boot_is_not_restarted_too(machine: Machine, counting: Counting) -> None:
    machine.say("crctl", "target", "add", "lasting", "--unit", "counting", "--on-calendar", "2100-01-01",
                "--at-shutdown", "--at-boot", "any")
    eventually("the guard", lambda: guards(machine))
    machine.shut_down()
    machine.boot()
    machine.say("systemctl", "mask", "--runtime", "crd.socket", CRD)
    counting.pid = start(machine, "counting")
    machine.say("systemctl", "unmask", "--runtime", "crd.socket", CRD)
    machine.say("systemctl", "restart", "crd.socket")
    number = crctl(machine, "requests")[0]["number"]
    ended = eventually("its end", lambda: _ended(machine, number))
    assert (ended["state"], ended["error"]) == ("failed", "target.runs-already")
    counting.assert_counts_on()
    machine.say("crctl", "target", "remove", "lasting")


def test_manual_pages_and_completion(machine: Machine) -> None:
    for section, page in (("8", "crd"), ("1", "crctl"), ("5", "crd.toml")):
        shown = machine.run("man", "--warnings", section, page)
        assert (shown.returncode, shown.stderr) == (0, "")
    script = (". /usr/share/bash-completion/completions/crctl; COMP_WORDS=(crctl tar) COMP_CWORD=1; "
              "_crctl_completion crctl; echo ${COMPREPLY[*]}")
    assert machine.say("bash", "-c", script) == "targets target"


def assert_nothing_is_left_but_what_was_taken(machine: Machine) -> None:
    assert machine.say("find", "/usr", "/etc/systemd", "-xdev", "(", "-name", "crd*", "-o", "-name", "_crd", "-o",
                       "-name", "*crctl*", ")", "-not", "-path", "/usr/src/*", "-not", "-name", "*.h") == ""
    assert machine.run("systemctl", "cat", CRD).returncode != 0
    assert machine.run("test", "-e", "/var/lib/crd/catalog.db").returncode == 0


def test_an_uninstall_leaves_nothing_but_what_was_taken(machine: Machine, counting: Counting) -> None:
    restarted(machine, counting)
    machine.say("make", "-C", str(CHECKOUT), "uninstall", "PREFIX=/usr")
    assert_nothing_is_left_but_what_was_taken(machine)
    counting.assert_counts_on()


def test_a_debian_package_puts_all_in_place_and_takes_it_away(machine: Machine, counting: Counting) -> None:
    machine.make("deb")
    [package] = (CHECKOUT / "build").glob("crd_*.deb")
    shutil.copy(package, machine.root / "srv/crd.deb")
    install = "dpkg", "--force-confold", "--install", "/srv/crd.deb"
    machine.say(*install)
    assert machine.show(CRD, "ActiveState") == "inactive"
    machine.say("systemctl", "enable", "--now", CRD)
    restarted(machine, counting)
    before = daemon_pid(machine)
    machine.say(*install)
    assert daemon_pid(machine) not in {0, before}
    counting.assert_counts_on()
    machine.say("dpkg", "--remove", "crd")
    assert machine.run("test", "-e", "/etc/crd/crd.toml").returncode == 0
    machine.say("dpkg", "--purge", "crd")
    assert machine.run("test", "-e", "/etc/crd/crd.toml").returncode != 0
    assert_nothing_is_left_but_what_was_taken(machine)
    counting.assert_counts_on()
