"""A client of S3: how it is set up, and what its errors mean.

Whatever the library says is translated here, once: by the error code of the answer, where there is one.  A 404 that
does not say NoSuchKey comes from something else than the store, and is never taken for a missing object.
"""

from __future__ import annotations

import asyncio
import configparser
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from crd.archive.secret_files import read_secret_file
from crd.errors import ArchiveDenied, ArchiveFull, ArchiveUnavailable, BlobCorrupt, BlobMissing, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from obstore import PutMode
    from obstore.store import S3Config, S3Credential

    from crd.errors import ArchiveError

_CREDENTIALS_BYTES_MAX = 64 << 10
_CREDENTIALS_LIFE = timedelta(minutes=15)
RETRY_SECONDS = 20.0
REQUEST_SECONDS = 120.0
_CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_THREADS = 16

T = TypeVar("T")

# Of their own: requests to a store that is away may take all of them, and nothing else shall wait for that.
_threads = ThreadPoolExecutor(_THREADS, "crd-s3")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>|(InvalidCertificate)\(")
_CAUSE = re.compile(r"""message: "([^"\\]+)"|error: "([^"\\]+)"|kind: (TimedOut|Timeout)""")
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "EntityTooLarge"}
_BUCKET = "Make the bucket, or correct s3.bucket and s3.endpoint."
_REGION = "The bucket is in another region: correct s3.region."
_ACCESS = "These credentials may not do that: they need to list the bucket, and to get, put and delete its objects."
_HINTS = {
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName", "AllAccessDisabled"), _BUCKET),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
                     "IllegalLocationConstraintException", "301", "307"), _REGION),
    **dict.fromkeys(("AccessDenied", "401", "403"), _ACCESS),
    "InvalidAccessKeyId": "The server does not know this access key: see s3.credentials.",
    "SignatureDoesNotMatch": "The secret key is not the one of this access key: see s3.credentials.",
    "ExpiredToken": "The credentials have expired: renew the file of s3.credentials; it is read again.",
    "InvalidCertificate": "Install the certificate of its authority on this host (update-ca-certificates(8)), or "
                          "correct s3.endpoint.",
    "RequestTimeTooSkewed": "The clock of this host is wrong by minutes.",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where an archive on S3 is.

    Attributes:
        prefix: of all its keys, without a slash at either end; empty: none.
        endpoint: URL of the server; empty: what the environment says, or AWS.
        region: empty: what the environment says, or us-east-1.
        credentials: file in the format of the AWS tools; None: what the environment says, or the role of the machine.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    credentials: Path | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class Client:
    """Requests to one prefix of a bucket; all raise BlobMissing, ArchiveFull, ArchiveDenied, ArchiveUnavailable.

    The library's own coroutines end in a thread of its runtime that may still want the interpreter when that ends, and
    then aborts the process (seen in 5 of 12 runs).  Here its plain functions run on threads of ours.
    """

    def __init__(self, location: Location, prefix: str = "", *, retry_seconds: float = RETRY_SECONDS,
                 request_seconds: float = REQUEST_SECONDS) -> None:
        """Make a client; nothing is sent yet.

        Args:
            location: of the archive.
            prefix: of all names, below that of the location.
            retry_seconds: a request that failed by a 5xx or a broken connection is not sent again after so long.
            request_seconds: what one may take.

        Raises:
            SettingsError: the credentials cannot be read.
        """
        self.where = "/".join(filter(None, (str(location), prefix)))
        self._retry_seconds = retry_seconds
        self._store = _connect(location, prefix, retry_seconds, request_seconds)

    async def get(self, name: str, start: int, end: int) -> obstore.Bytes:
        """Return a range of an object."""
        return await self._ask(name, lambda: obstore.get_range(self._store, name, start=start, end=end))

    async def get_end(self, name: str, length: int) -> tuple[int, bytes]:
        """Return the size of an object, and its last bytes."""
        def get() -> tuple[int, bytes]:
            found = obstore.get(self._store, name, options={"range": {"suffix": length}})
            return found.meta["size"], bytes(found.bytes())

        return await self._ask(name, get)

    async def get_version(self, name: str) -> tuple[str | None, bytes]:
        """Return an object, and its ETag."""
        def get() -> tuple[str | None, bytes]:
            found = obstore.get(self._store, name)
            return found.meta["e_tag"], bytes(found.bytes())

        return await self._ask(name, get)

    async def put(self, name: str, content: list[bytes], *, e_tag: str | None = None) -> str | None:
        """Create an object, or replace that version of it; return its ETag.

        Raises:
            AlreadyExistsError, PreconditionError: there is another: perhaps our own, whose acknowledgement was lost.
        """
        mode: PutMode = {"e_tag": e_tag} if e_tag else "create"
        return (await self._ask(name, lambda: obstore.put(self._store, name, content, mode=mode)))["e_tag"]

    async def delete(self, names: list[str]) -> None:
        """Delete objects, those of them that are there."""
        with suppress(BlobMissing):
            await self._ask(names[0], lambda: obstore.delete(self._store, names))

    async def list(self, prefix: str) -> dict[str, int]:
        """Return the names of all objects in a directory, with their bytes."""
        def get() -> dict[str, int]:
            chunks = obstore.list(self._store, prefix.rstrip("/") or None, chunk_size=1000)
            return {meta["path"]: meta["size"] for chunk in chunks for meta in chunk}

        return await self._ask(prefix, get)

    async def _ask(self, name: str, request: Callable[[], T]) -> T:
        """Ask until there is an answer.  The library asks again by itself, but not after all that can be cured so."""
        deadline = time.monotonic() + self._retry_seconds
        while True:
            try:
                with _translated(self.where, name):
                    return await asyncio.get_running_loop().run_in_executor(_threads, request)
            except ArchiveDenied:
                raise
            except ArchiveUnavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)


def _connect(location: Location, prefix: str, retry_seconds: float, request_seconds: float) -> S3Store:
    config: S3Config = {"checksum_algorithm": "SHA256", "disable_bulk_delete": True}
    if location.endpoint:
        config["endpoint"] = location.endpoint
    if location.region:
        config["region"] = location.region
    return S3Store(
        location.bucket, prefix="/".join(filter(None, (location.prefix, prefix))) or None, config=config,
        credential_provider=_Credentials(location.credentials) if location.credentials else None,
        client_options={"user_agent": "crd", "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                        "timeout": timedelta(seconds=request_seconds),
                        **({"allow_http": True} if location.endpoint.startswith("http:") else {})},
        retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=retry_seconds),
                      "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5),
                                  "base": 2}})


class _Credentials:
    """Gives what a file says, which is read again now and then: it may be replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        read_credentials(path)

    def __call__(self) -> S3Credential:
        key, secret, token = read_credentials(self._path)
        return {"access_key_id": key, "secret_access_key": secret, "token": token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFE}


def read_credentials(path: Path) -> tuple[str, str, str | None]:
    """Return access key, secret key and session token of the profile ``default`` of a file, or of its only one.

    Raises:
        SettingsError: it cannot be read, may be read by others, or does not say them; what it says is not shown.
    """
    profiles = configparser.ConfigParser(default_section="", interpolation=None)
    try:
        profiles.read_string(read_secret_file(path, "credentials file", _CREDENTIALS_BYTES_MAX).decode())
        names = profiles.sections()
        profile = profiles["default" if "default" in names or len(names) != 1 else names[0]]
        return profile["aws_access_key_id"], profile["aws_secret_access_key"], profile.get("aws_session_token")
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise SettingsError(
            f"credentials file {path}: it has no profile with aws_access_key_id and aws_secret_access_key",
            path=str(path),
            hint="Write it as `aws configure` does: [default], then one `name = value` a line.") from None


@contextmanager
def _translated(where: str, key: str = "") -> Iterator[None]:
    """Turn the errors of the library into the archive's, but for those of a condition that was not met.

    Raises:
        BlobMissing, ArchiveFull, ArchiveDenied, ArchiveUnavailable: see ``Store``.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        raise meaning(str(error), where, key) from error


def meaning(text: str, where: str, key: str = "") -> ArchiveError:
    """Return the error of the archive for one of the library."""
    code = found[1] or found[2] if (found := _CODE.search(text)) else ""
    status = found[1] if (found := _STATUS.search(text)) else ""
    what = f"{where}/{key}" if key else where
    if code == "NoSuchKey":
        return BlobMissing(f"{what} is missing", key=key)
    if code == "InvalidRange":
        return BlobCorrupt(f"{what} is shorter than it was", key=key)
    if code in _FULL or status == "507":
        return ArchiveFull(f"{what}: {code or status}", hint="Free space, forget images, or raise the quota.")
    if hint := _HINTS.get(code) or _HINTS.get(status):
        return ArchiveDenied(f"{where}: {code or status}", hint=hint)
    causes = [next(filter(None, match)) for match in _CAUSE.findall(text)]
    reason = code or (f"status {status}" if status else "") or (causes[-1] if causes else "no answer")
    return ArchiveUnavailable(f"{what}: {reason}", hint="See that the server runs and s3.endpoint is right; what was "
                              "not stored is tried again.", **({"status": int(status)} if status else {}))
