"""The real Prometheus, on loopback and in a directory of its own."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.daemon import eventually
from tests.support.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CONFIG = Path(__file__).parent.parent.parent / "config" / "prometheus"


_HASTE = 120


def hurried(text: str) -> str:
    """Return rules in which a second is what two minutes were, so that a test sees them through."""
    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[2]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[3]]
        return f"{found[1]}{max(1, seconds // _HASTE)}s"

    text = re.sub(r"((?:\[|for: ))(\d+)([smhd])\b", shorter, text)
    return re.sub(r"(time\(\) - \w+ > )(\d+)", lambda found: f"{found[1]}{int(found[2]) // _HASTE}", text)


class Prometheus:
    """Scrapes one address each second by the configuration that ships, with hurried rules."""

    def __init__(self, home: Path, address: str) -> None:
        self._home = home
        for rules in CONFIG.glob("crd.*.yml"):
            (home / rules.name).write_text(hurried(rules.read_text()))
        config = (CONFIG / "prometheus.yml").read_text()
        (home / "prometheus.yml").write_text(config.replace("interval: 30s", "interval: 1s").replace(
            "127.0.0.1:9643", address).replace("scrape_timeout: 10s", "scrape_timeout: 1s"))
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (self._home / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={self._home}/prometheus.yml", f"--storage.tsdb.path={self._home}/data",
                 f"--web.listen-address=127.0.0.1:{port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually("Prometheus to be ready", self._is_ready)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=60) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}",
                                    timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask for an expression now: labels and value of each series."""
        return self._ask("query", query=expression)["result"]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"] if alert["state"] == "firing"}
