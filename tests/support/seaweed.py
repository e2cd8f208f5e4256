"""A real S3 server, SeaweedFS, on loopback: it can be killed and started again, and keeps what it has acknowledged."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from crd.archive.stores.s3_client import Location
from tests.support.daemon import BIN, eventually
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key-never-shown"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
          "s3.port", "s3.port.grpc")
_START_SECONDS = 300
"""Its parts wait for each other: 5 s on a machine with nothing else to do, and 20 s at load 17."""


class SeaweedServer:
    """``weed server`` with its data under ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self.process: subprocess.Popen[bytes] | None = None
        self.credentials = home / "credentials"

    @property
    def port(self) -> int:
        """Where it speaks S3."""
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it and wait until it takes and gives objects."""
        (self._home / "data").mkdir(parents=True, exist_ok=True)
        config = self._home / "s3.json"
        config.write_text(json.dumps({"identities": [{
            "name": "test", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}))
        self.credentials.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\n"
                                    f"aws_secret_access_key = {SECRET_KEY}\n")
        self.credentials.chmod(0o600)
        with (self._home / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "weed", "server", f"-dir={self._home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer",
                 "-s3", f"-s3.config={config}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                 "-master.telemetry=false", "-volume.max=200",
                 "-master.volumeSizeLimitMB=64", *(f"-{name}={port}" for name, port in self._ports.items())],
                cwd=self._home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually("the S3 server to take an object", self._answers, seconds=_START_SECONDS)
        return self

    def location(self, bucket: str, prefix: str = "", endpoint: str = "") -> Location:
        """Return where an archive of ours is here; the bucket is made if it is missing."""
        obstore.put(self.bucket(bucket), "made", b"")
        return Location(bucket, prefix, endpoint or self.endpoint, "us-east-1", self.credentials)

    def bucket(self, name: str) -> S3Store:
        """Return a client of our own, apart from what is tested; the bucket is made by the first object."""
        return S3Store(name, endpoint=self.endpoint, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY,
                       region="us-east-1", client_options={"allow_http": True},
                       retry_config={"max_retries": 0}, virtual_hosted_style_request=False)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._home / "weed.log").read_text(errors="replace")[-5000:]
        try:
            obstore.put(self.bucket("probe"), "probe", b"1")
            return bytes(obstore.get(self.bucket("probe"), "probe").bytes()) == b"1"
        except (BaseError, OSError):
            time.sleep(0.1)
            return False

    def kill(self) -> None:
        """End it as a power cut would, but for what the kernel still writes."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

