"""The sections and their keys; ``config/crd.toml`` shows them all, and a test holds the two against each other."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from crd.errors import CrdError
from crd.ids import parse_target_name
from crd.settings.keep import Keep, KeepRules
from crd.settings.units import Bytes, Seconds  # noqa: TC001  pydantic reads annotations

_PID_MAX = 2**22
"""PID_MAX_LIMIT of 64-bit kernels."""


class Section(BaseModel):
    """A table of the settings file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _shaped(pattern: str, like: str) -> AfterValidator:
    """Return what lets pass an empty text, or one of a pattern."""
    def check(text: str) -> str:
        if text and not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"write {like}")
        return text

    return AfterValidator(check)


class DaemonSettings(Section):
    """The daemon itself."""

    state_dir: Path = Path("/var/lib/crd")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "journal", "json", "text"] = "auto"
    stop_grace: Seconds = 20.0


class EngineSettings(Section):
    """Taking and restarting images."""

    workers: Annotated[int, Field(ge=1, le=64)] = 2
    freeze_timeout: Seconds = 2.0
    checkpoint_timeout: Seconds = 600.0
    restart_timeout: Seconds = 600.0
    kind: Literal["auto", "userspace", "kernel"] = "auto"
    linux_cr: Annotated[str, _shaped(r"v1[34689]|v14-rc|v2[13]|3\.0|\d{1,4}/\d{1,4}/[34]",
                                     "a release of Linux-CR, as v16, or CHECKPOINT/RESTART/ARGUMENTS")] = ""
    method: Literal["auto", "snapshot", "copy"] = "auto"
    note_writes: bool = True
    socket: str = ""
    crid_file: Path = Path("/var/lib/crd/crid")


class ArchiveSettings(Section):
    """Where images are kept, and how compressed; an empty path is ``archive`` under the state directory."""

    store: Literal["local", "s3"] = "local"
    path: str = ""
    level: Annotated[int, Field(ge=1, le=19)] = 1
    threads: Annotated[int, Field(ge=1, le=64)] = 2


class S3Settings(Section):
    """The archive on S3, and the spool before it; what is empty comes from the environment, or has its usual value."""

    bucket: Annotated[str, _shaped(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "the name of a bucket, and only that")] = ""
    prefix: Annotated[str, _shaped(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", "words with slashes between them, as a/b")] = "crd"
    endpoint: Annotated[str, _shaped(r"https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?/?",
                                     "the URL of a server, as https://s3.example.com:9000; nothing follows")] = ""
    region: Annotated[str, _shaped(r"[A-Za-z0-9-]+", "the name of a region, as eu-central-1")] = ""
    credentials: str = ""
    writer: Annotated[str, _shaped(r"[A-Za-z0-9][\w.-]{0,62}", "a name such as a host has")] = ""
    spool_path: str = ""
    spool_size: Annotated[Bytes, Field(ge=0)] = 4 << 30


class EncryptionSettings(Section):
    """Encryption of images: paths or systemd credentials with a key each; the first seals new images, all open old."""

    keys: tuple[str, ...] = ()
    accept_plain: bool = False


class CatalogSettings(Section):
    """The database; an empty URL is SQLite in ``catalog.db`` under the state directory.

    ``host`` is this host's name in a catalog that several share; empty: its host name.
    """

    url: Annotated[str, _shaped(r"sqlite(\+aiosqlite)?:///.+|postgresql\+asyncpg://.*/.+",
                                "sqlite:////PATH or postgresql+asyncpg://USER@HOST/DATABASE")] = ""
    host: Annotated[str, _shaped(r"[A-Za-z0-9][\w.-]{0,62}", "a name such as a host has")] = ""


class ApiSettings(Section):
    """The control socket."""

    socket: Path = Path("/run/crd/crd.sock")
    public: bool = False
    group: str = "crd"


class MetricsSettings(Section):
    """The Prometheus endpoint; an empty address turns it off, port 0 takes a free one."""

    listen: Annotated[str, Field(pattern=r"^$|^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")] = "127.0.0.1:9643"


def _check_calendar(expression: str | None) -> str | None:
    if expression is not None:
        from oncalendar import OnCalendar, OnCalendarError

        try:
            OnCalendar(expression, datetime.now(UTC))
        except OnCalendarError as error:
            raise ValueError(f"{expression!r} is no OnCalendar expression ({error}); see systemd.time(7)") from None
    return expression


def _check_cron(expression: str | None) -> str | None:
    if expression is not None:
        from cronsim import CronSim, CronSimError

        try:
            CronSim(expression, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{expression!r} is no cron expression ({error}); see crontab(5)") from None
    return expression


def _check_expression(text: str | None) -> str | None:
    if text is not None:
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _check_unit(name: str | None) -> str | None:
    if name is None:
        return None
    whole = name if name.endswith((".service", ".scope", ".slice")) else f"{name}.service"
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,255}", whole):
        raise ValueError(f"{name!r} is no name of a unit; see systemd.unit(5)")
    return whole


def _check_cgroup(path: str | None) -> str | None:
    if path is None:
        return None
    found = path.removeprefix("/sys/fs/cgroup").rstrip("/")
    if not found.startswith("/") or {".", "..", ""} & {*found.split("/")[1:]}:
        raise ValueError(f"{path!r} is no path of a control group, such as /system.slice/web.service; see cgroups(7)")
    return found


class RetentionSettings(Section):
    """Which images stay, of targets that do not say so themselves, and how often what is stored is checked.

    ``requests_for``: how long a restart request is listed after its end.
    """

    keep: KeepRules = Keep()
    min_images: Annotated[int, Field(ge=1)] = 1
    scrub_every: Seconds = 7 * 86400.0
    scrub_rate: Annotated[Bytes, Field(ge=1 << 20)] = 32 << 20
    requests_for: Seconds = 30 * 86400.0


class TargetSettings(Section):
    """What is checkpointed and when: exactly one of each kind; without ``keep`` the rules of ``[retention]``.

    ``save_files``: files that it can write to and that are not larger than this are saved with each image.  ``files``:
    what a restart does about files that have changed, unless its request says that.  ``at_boot``: which pids it is
    restarted with after the shutdown that it was saved at.
    """

    pid: Annotated[int, Field(gt=0, le=_PID_MAX)] | None = None
    pidfile: Path | None = None
    comm: Annotated[str | None, AfterValidator(_check_expression)] = None
    unit: Annotated[str | None, AfterValidator(_check_unit)] = None
    cgroup: Annotated[str | None, AfterValidator(_check_cgroup)] = None
    every: Annotated[Seconds, Field(ge=1)] | None = None
    on_calendar: Annotated[str | None, AfterValidator(_check_calendar)] = None
    cron: Annotated[str | None, AfterValidator(_check_cron)] = None
    jitter: Seconds = 0.0
    keep: KeepRules | None = None
    save_files: Annotated[Bytes, Field(ge=0), PlainSerializer(str)] | None = None
    files: Literal["keep", "rollback", "fail"] | None = None
    at_shutdown: bool = False
    at_boot: Literal["original", "any"] | None = None
    held: bool = False

    @model_validator(mode="after")
    def _over_a_reboot(self) -> Self:
        if self.at_boot and not self.at_shutdown:
            raise ValueError("at_boot restarts what at_shutdown = true has saved: give both")
        if self.at_shutdown and self.pid is not None:
            raise ValueError("at_shutdown ends the target, and after a boot its pid may be another's: "
                             "name it by unit, cgroup, pidfile or comm")
        return self

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for what, keys in (("what to checkpoint", ("pid", "pidfile", "comm", "unit", "cgroup")),
                           ("when", ("every", "on_calendar", "cron"))):
            given = [key for key in keys if getattr(self, key) is not None]
            if len(given) != 1:
                raise ValueError(f"say {what} by exactly one of {', '.join(keys)}; "
                                 f"given: {' and '.join(given) or 'none'}")
        return self


class Settings(BaseSettings):
    """All sections."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="CRD_", env_nested_delimiter="__")

    daemon: DaemonSettings = DaemonSettings()
    engine: EngineSettings = EngineSettings()
    archive: ArchiveSettings = ArchiveSettings()
    s3: S3Settings = S3Settings()
    encryption: EncryptionSettings = EncryptionSettings()
    catalog: CatalogSettings = CatalogSettings()
    api: ApiSettings = ApiSettings()
    metrics: MetricsSettings = MetricsSettings()
    retention: RetentionSettings = RetentionSettings()
    targets: dict[str, TargetSettings] = {}

    @model_validator(mode="after")
    def _bucket(self) -> Self:
        if self.archive.store == "s3" and not self.s3.bucket:
            raise ValueError('archive.store is "s3": name the bucket in s3.bucket')
        return self

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.targets:
            try:
                parse_target_name(name)
            except CrdError as error:
                raise ValueError(f"targets.{name}: {error.message}. {error.hint}") from None
        return self

    @property
    def archive_path(self) -> Path:
        """Where the local archive is."""
        return Path(self.archive.path) if self.archive.path else self.daemon.state_dir / "archive"

    @property
    def engine_socket(self) -> Path | None:
        """Where engine workers come from; None: from the daemon itself."""
        return Path(self.engine.socket) if self.engine.socket else None

    @property
    def spool_path(self) -> Path:
        """Where objects wait for S3."""
        return Path(self.s3.spool_path) if self.s3.spool_path else self.daemon.state_dir / "spool"

    @property
    def catalog_url(self) -> str:
        """Where the catalog is."""
        return self.catalog.url or f"sqlite:///{self.daemon.state_dir / 'catalog.db'}"

    @classmethod
    def settings_customise_sources(  # the signature is pydantic's
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which comes as arguments; read nothing else."""
        return env_settings, init_settings
