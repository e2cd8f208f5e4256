"""Every error crd raises on purpose: code, message, hint, retryable, exit status.

A class's docstring is its default message.  Families end in ``Error``; members state the fact.
``code`` is stable: programs and metrics match on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY_DONE = 3
EXIT_UNAVAILABLE = 10
EXIT_NOT_FOUND = 11
EXIT_DENIED = 12
EXIT_UNSUPPORTED = 13
EXIT_CONFLICT = 14


class CrdError(Exception):
    """crd failed."""

    code: ClassVar[str] = "crd.failed"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str = "", *, hint: str = "", **details: Any) -> None:
        """Make an error.

        Args:
            message: what is wrong, with the object it is wrong with; the class's docstring if empty.
            hint: a sentence for the operator: what to do about it.
            details: JSON values that say where (pid, offset, path ...).
        """
        doc = (type(self).__doc__ or "").strip().splitlines()
        super().__init__(message or (doc[0] if doc else self.code))
        self.hint = hint
        self.details = details

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return str(self.args[0])

    def to_json(self) -> dict[str, Any]:
        """Return the error as programs see it: ``error``, ``message``, ``hint`` and the details."""
        return {**self.details, "error": self.code, "message": self.message, "hint": self.hint,
                "retryable": self.retryable}

    @staticmethod
    def from_json(value: dict[str, Any]) -> CrdError:
        """Rebuild an error that crossed a process or socket boundary; of details that do not fit nothing is left."""
        fields = dict(value)
        code, message, hint = (str(fields.pop(name, "")) for name in ("error", "message", "hint"))
        fields.pop("retryable", None)
        kind = ERRORS_BY_CODE.get(code, CrdError)
        try:
            if issubclass(kind, TargetUnsupported):
                fields["reasons"] = [Obstacle(**reason) for reason in fields.pop("reasons", ())]
            return kind(message, hint=hint, **fields)
        except TypeError:  # another version of crd says more, or it is none
            return kind(message, hint=hint)


def unforeseen() -> CrdError:
    """Return what is told in the place of an exception that is no CrdError, and only logged: it may hold anything."""
    return CrdError("the daemon failed; its log says why")


class SettingsError(CrdError):
    """The settings are wrong."""

    code = "settings.invalid"
    exit_status = EXIT_USAGE


class StateInUse(SettingsError):
    """Another daemon works on this state directory."""

    code = "settings.state-in-use"
    exit_status = EXIT_CONFLICT


# --- targets -----------------------------------------------------------------------------------


class TargetError(CrdError):
    """The target cannot be used."""

    code = "target.failed"


class TargetNotFound(TargetError):
    """No process fits the target."""

    code = "target.not-found"
    exit_status = EXIT_NOT_FOUND


class TargetAmbiguous(TargetError):
    """Several processes fit the target."""

    code = "target.ambiguous"
    exit_status = EXIT_CONFLICT


class TargetGone(TargetError):
    """The target exited while it was being checkpointed."""

    code = "target.gone"
    exit_status = EXIT_NOT_FOUND


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps a process from being checkpointed, restarted or both.

    Attributes:
        code: stable name of the kind of obstacle, such as ``fd.terminal``.
        object: what it is about: ``pid 4242``, ``fd 3 (/dev/pts/1)``.
        reason: why crd cannot do it.
        remedy: what the operator can do.
    """

    code: str
    object: str
    reason: str
    remedy: str = ""


class TargetRuns(TargetError):
    """The target runs already."""

    code = "target.runs-already"
    exit_status = EXIT_CONFLICT


class TargetBusy(TargetError):
    """The target is in use in a way that keeps it from being checkpointed just now."""

    code = "target.busy"
    retryable = True
    exit_status = EXIT_CONFLICT


class TargetUnsupported(TargetError):
    """The target holds state that crd cannot checkpoint."""

    code = "target.unsupported"
    exit_status = EXIT_UNSUPPORTED

    def __init__(self, message: str = "", *, hint: str = "", reasons: Sequence[Obstacle] = (), **details: Any) -> None:
        if not message and reasons:
            first = reasons[0]
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            message = f"{first.object}: {first.reason}{more}"
        if not hint and reasons:
            hint = reasons[0].remedy
        super().__init__(message, hint=hint, **details)
        self.reasons = tuple(reasons)

    def to_json(self) -> dict[str, Any]:
        """Return the error with every obstacle under ``reasons``."""
        return {**super().to_json(), "reasons": [asdict(reason) for reason in self.reasons]}


# --- engine ------------------------------------------------------------------------------------


class EngineError(CrdError):
    """The engine failed."""

    code = "engine.failed"


class FreezeTimeout(EngineError):
    """The target could not be stopped in time."""

    code = "engine.freeze-timeout"
    retryable = True


class FeatureMissing(EngineError):
    """The running kernel or these privileges lack something that is needed."""

    code = "engine.feature-missing"
    exit_status = EXIT_UNSUPPORTED


class TerminalNotHeld(EngineError):
    """The process has no terminal that crd holds."""

    code = "engine.terminal-not-held"
    exit_status = EXIT_NOT_FOUND


class TerminalTaken(EngineError):
    """Somebody else sits at the terminal now."""

    code = "engine.terminal-taken"
    exit_status = EXIT_CONFLICT


class SandboxMissing(FeatureMissing):
    """A copy of these tasks cannot be let run here without harm."""

    code = "engine.sandbox-missing"


class TracerBusy(EngineError):
    """Another tracer is attached to the target."""

    code = "engine.tracer-busy"
    retryable = True
    exit_status = EXIT_CONFLICT


class WorkerDied(EngineError):
    """The engine worker died."""

    code = "engine.worker-died"
    retryable = True


class NativeError(EngineError):
    """A system call failed."""

    code = "native.failed"

    def __init__(self, message: str = "", *, hint: str = "", operation: str = "", errno: int = 0,
                 tid: int = 0, address: int = 0, **details: Any) -> None:
        super().__init__(message, hint=hint, operation=operation, errno=errno, tid=tid, address=address, **details)
        self.operation = operation
        self.errno = errno
        self.tid = tid
        self.address = address


class TraceDenied(NativeError):
    """The kernel does not let crd trace this task."""

    code = "native.trace-denied"
    exit_status = EXIT_DENIED


class TraceeGone(NativeError):
    """The traced task is gone."""

    code = "native.tracee-gone"
    exit_status = EXIT_NOT_FOUND


class MemoryFault(NativeError):
    """The target's memory could not be read or written."""

    code = "native.memory-fault"


class InjectionInterrupted(NativeError):
    """A signal is about to be delivered to the thread that was to make a system call for us.

    The thread is back where it was, in the signal-delivery-stop: ``signal`` must be passed on when it is let go.
    """

    code = "native.injection-interrupted"
    retryable = True

    def __init__(self, message: str = "", *, signal: int = 0, **details: Any) -> None:
        super().__init__(message, signal=signal, **details)
        self.signal = signal


class RestartError(EngineError):
    """The image could not be restarted."""

    code = "restart.failed"


class PidInUse(RestartError):
    """A process id of the image is in use."""

    code = "restart.pid-in-use"
    exit_status = EXIT_CONFLICT


class ResourceChanged(RestartError):
    """Something the image refers to is missing or no longer what it was."""

    code = "restart.resource-changed"
    exit_status = EXIT_CONFLICT


class RestartUnsupported(RestartError):
    """This host or this version of crd cannot restart the image."""

    code = "restart.unsupported"
    exit_status = EXIT_UNSUPPORTED


class CopyFailed(RestartError):
    """A copy of the tasks was restarted in a sandbox, and did not run on as the original did."""

    code = "restart.copy-failed"


# --- images ------------------------------------------------------------------------------------


class ImageError(CrdError):
    """The image is not valid."""

    code = "image.invalid"

    def __init__(self, message: str = "", *, hint: str = "", offset: int = 0, record: str = "", **details: Any) -> None:
        """Make an error about the record that starts at byte ``offset`` of the stream."""
        super().__init__(message, hint=hint, offset=offset, record=record, **details)
        self.offset = offset
        self.record = record


class ImageSinkClosed(CrdError):
    """Nobody reads the image any more."""

    code = "image.sink-closed"


class ImageSinkFull(CrdError):
    """There is no space left for the image."""

    code = "image.sink-full"
    retryable = True


class ImageTruncated(ImageError):
    """The image ends too early."""

    code = "image.truncated"


class ImageCorrupt(ImageError):
    """The image is damaged."""

    code = "image.corrupt"


class ImageVersionUnsupported(ImageError):
    """The image is of a generation or version that crd cannot use."""

    code = "image.version-unsupported"
    exit_status = EXIT_UNSUPPORTED


class ImageTaskMissing(ImageError):
    """The image has no such task."""

    code = "image.task-missing"
    exit_status = EXIT_NOT_FOUND


# --- archive -----------------------------------------------------------------------------------


class ArchiveError(CrdError):
    """The archive failed."""

    code = "archive.failed"


class BlobMissing(ArchiveError):
    """An object of the archive is missing."""

    code = "archive.blob-missing"
    exit_status = EXIT_NOT_FOUND


class KeyMissing(BlobMissing):
    """The key that an object of the archive is encrypted with is not here."""

    code = "archive.key-missing"


class NotEncrypted(BlobMissing):
    """An object of the archive is not encrypted, but has to be."""

    code = "archive.not-encrypted"


class BlobCorrupt(ArchiveError):
    """An object of the archive is damaged."""

    code = "archive.blob-corrupt"


class ArchiveFull(ArchiveError):
    """There is no space left for the image."""

    code = "archive.full"
    retryable = True


class ArchiveUnavailable(ArchiveError):
    """The archive cannot be reached, read or written."""

    code = "archive.unavailable"
    retryable = True


class ArchiveDenied(ArchiveUnavailable):
    """The archive's store refuses us."""

    code = "archive.denied"
    retryable = False
    exit_status = EXIT_DENIED


class ArchiveInUse(ArchiveError):
    """Another daemon writes into this part of the archive."""

    code = "archive.in-use"
    exit_status = EXIT_CONFLICT


# --- catalog -----------------------------------------------------------------------------------


class CatalogError(CrdError):
    """The catalog failed."""

    code = "catalog.failed"


class ImageNotFound(CatalogError):
    """There is no such image."""

    code = "catalog.image-not-found"
    exit_status = EXIT_NOT_FOUND


class ImageInUse(CatalogError):
    """The image is pinned, or needed just now."""

    code = "catalog.image-in-use"
    exit_status = EXIT_CONFLICT


class ImageDamaged(CatalogError):
    """The image is known to be damaged."""

    code = "catalog.image-damaged"


class ImageElsewhere(CatalogError):
    """The image is in the archive of another host."""

    code = "catalog.image-elsewhere"
    exit_status = EXIT_UNSUPPORTED


class TagNotFound(CatalogError):
    """The image has no such tag."""

    code = "catalog.tag-not-found"
    exit_status = EXIT_NOT_FOUND


class RequestNotFound(CatalogError):
    """There is no such restart request."""

    code = "catalog.request-not-found"
    exit_status = EXIT_NOT_FOUND


class RequestMoved(CatalogError):
    """The restart request is in another state by now."""

    code = "catalog.request-moved"
    exit_status = EXIT_CONFLICT


class QueueFull(CatalogError):
    """Too many restart requests are queued already."""

    code = "catalog.queue-full"
    retryable = True
    exit_status = EXIT_CONFLICT


class RequestNotCancellable(CatalogError):
    """The restart request is already being carried out or has ended."""

    code = "catalog.request-not-cancellable"
    exit_status = EXIT_CONFLICT


class CatalogTargetNotFound(CatalogError):
    """There is no target of that name."""

    code = "catalog.target-not-found"
    exit_status = EXIT_NOT_FOUND


class TargetExists(CatalogError):
    """There is a target of that name already."""

    code = "catalog.target-exists"
    exit_status = EXIT_CONFLICT


class CatalogBusy(CatalogError):
    """The catalog is locked by another program."""

    code = "catalog.busy"
    retryable = True
    exit_status = EXIT_CONFLICT


class CatalogFull(CatalogError):
    """There is no space left for the catalog."""

    code = "catalog.full"
    retryable = True


class CatalogUnavailable(CatalogError):
    """The catalog's server does not answer."""

    code = "catalog.unavailable"
    retryable = True


class CatalogInUse(CatalogError):
    """Another daemon of the same host uses the catalog."""

    code = "catalog.in-use"
    exit_status = EXIT_CONFLICT


class CatalogOutOfDate(CatalogError):
    """The catalog was written by a newer version of crd, or is no catalog at all."""

    code = "catalog.out-of-date"


# --- api ---------------------------------------------------------------------------------------


class ApiError(CrdError):
    """The request to the daemon failed."""

    code = "api.failed"


class BadRequest(ApiError):
    """The request is not valid."""

    code = "api.bad-request"
    exit_status = EXIT_USAGE


class AccessDenied(ApiError):
    """You may not do this."""

    code = "api.access-denied"
    exit_status = EXIT_DENIED


class DaemonUnavailable(ApiError):
    """The daemon cannot be reached."""

    code = "api.daemon-unavailable"
    retryable = True
    exit_status = EXIT_UNAVAILABLE


class SystemdUnavailable(ApiError):
    """Systemd does not do what it was asked for."""

    code = "api.systemd-unavailable"


class Busy(ApiError):
    """The daemon is busy with the same thing already."""

    code = "api.busy"
    retryable = True
    exit_status = EXIT_CONFLICT


def _all_errors(root: type[CrdError]) -> list[type[CrdError]]:
    found = [root]
    for child in root.__subclasses__():
        found += _all_errors(child)
    return found


ERRORS_BY_CODE: dict[str, type[CrdError]] = {kind.code: kind for kind in _all_errors(CrdError)}
