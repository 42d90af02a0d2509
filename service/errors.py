"""The one exception tree of Sleddog.

Each error is also the standard-library type a caller would expect, carries a stable `code` for programs, and survives
pickling, because Ray sends errors between processes. `fault` says who can mend it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

Fault = Literal["user", "data", "infrastructure", "numerics"]


class SleddogError(Exception):
    """Base of every error that Sleddog raises on purpose.

    Args:
        message: what happened and what to do, in one or two sentences.
        field: dotted path of the spec field at fault, such as `data.sources.0.uri`, if one is.
    """

    code: ClassVar[str] = "internal_error"
    fault: ClassVar[Fault] = "infrastructure"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidSpecError(SleddogError, ValueError):
    """A spec that can never run as written."""

    code = "invalid_spec"
    fault = "user"


class InvalidSettingsError(SleddogError, ValueError):
    """A service or a client that cannot work as it was set up."""

    code = "invalid_settings"
    fault = "user"


class SchemaError(SleddogError, RuntimeError):
    """A database whose schema is not that of this version."""

    code = "wrong_schema"
    fault = "user"


class SourceNotFoundError(SleddogError, FileNotFoundError):
    """A source's URI names no file."""

    code = "source_not_found"
    fault = "user"


class BadRowError(SleddogError, ValueError):
    """A source row that is no conversation; the message names the file and the row."""

    code = "bad_row"
    fault = "data"


class InvalidDatasetError(SleddogError, ValueError):
    """An uploaded file that is not what was announced, cannot be decompressed, or expands too far."""

    code = "invalid_dataset"
    fault = "data"


class EmptyDataError(SleddogError, ValueError):
    """Nothing is left to train on."""

    code = "empty_data"
    fault = "data"


class DataChangedError(SleddogError, ValueError):
    """The data that comes out is not the data that is required."""

    code = "data_changed"
    fault = "data"


class EndpointError(SleddogError, ConnectionError):
    """A language model that data is written or answers are rated with does not answer."""

    code = "endpoint_unavailable"
    fault = "infrastructure"


class SandboxUnavailableError(SleddogError, RuntimeError):
    """Code that a model wrote cannot be isolated here, so it is not run."""

    code = "sandbox_unavailable"
    fault = "infrastructure"


class CheckpointError(SleddogError, ValueError):
    """A checkpoint that is torn, or belongs to another model."""

    code = "bad_checkpoint"
    fault = "data"


class StorageError(SleddogError, OSError):
    """The storage has not taken a run's files in time."""

    code = "storage_unavailable"
    fault = "infrastructure"


class PlacementError(SleddogError, TimeoutError):
    """The cluster did not place the workers within the deadline."""

    code = "placement_timeout"
    fault = "infrastructure"


class WorkerLostError(SleddogError, RuntimeError):
    """Training workers died more often than the spec allows."""

    code = "worker_lost"
    fault = "infrastructure"


class SupersededError(SleddogError, RuntimeError):
    """Another driver or group of workers has taken this process's place, because it was thought lost."""

    code = "superseded"
    fault = "infrastructure"


class TrialsFailedError(SleddogError, RuntimeError):
    """More trials of a sweep failed than its spec allows."""

    code = "trials_failed"
    fault = "user"


class NonFiniteLossError(SleddogError, ArithmeticError):
    """The gradient is NaN or infinite, several steps in a row."""

    code = "non_finite_loss"
    fault = "numerics"


class ProofError(SleddogError, ArithmeticError):
    """A run whose arithmetic, data or count of steps is not what it must be; the message tells what was measured."""

    code = "proof_failed"
    fault = "numerics"


class BackendUnavailableError(SleddogError, ConnectionError):
    """The Ray cluster did not answer."""

    code = "backend_unavailable"
    fault = "infrastructure"


class BackendRefusedError(BackendUnavailableError):
    """The Ray cluster answered, and did not do what it was asked."""

    code = "backend_refused"


class DatabaseUnavailableError(SleddogError, ConnectionError):
    """The database does not answer."""

    code = "database_unavailable"
    fault = "infrastructure"


class NotAuthenticatedError(SleddogError, PermissionError):
    """No API key, or a wrong one."""

    code = "not_authenticated"
    fault = "user"


class NotAuthorizedError(SleddogError, PermissionError):
    """A valid API key, whose user or scopes may not do this."""

    code = "not_authorized"
    fault = "user"


class NotFoundError(SleddogError, LookupError):
    """The resource does not exist."""

    code = "not_found"
    fault = "user"


class ConflictError(SleddogError, RuntimeError):
    """The request contradicts the resource's state, or an idempotency key's first use."""

    code = "conflict"
    fault = "user"


class OutdatedSpecError(ConflictError):
    """A spec that was stored by another version, and that this one does not take."""

    code = "outdated_spec"


class PreconditionFailedError(ConflictError):
    """The resource is no longer what the request's `If-Match` names."""

    code = "precondition_failed"


class NotReadyError(ConflictError):
    """What is asked for is being made; the same request succeeds in a moment."""

    code = "not_ready"


class RateLimitedError(SleddogError, RuntimeError):
    """More requests than one key may send.

    Args:
        retry_after_s: seconds until the next is answered.
    """

    code = "rate_limited"
    fault = "user"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__(f"too many requests; the next is answered in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[RateLimitedError], tuple[float]]:
        return type(self), (self.retry_after_s,)


class ServiceUnreachableError(SleddogError, ConnectionError):
    """The client could not reach the control plane."""

    code = "service_unreachable"
    fault = "infrastructure"


class JobFailedError(SleddogError, RuntimeError):
    """A job that a client waited for has failed or was cancelled."""

    code = "job_failed"
    fault = "infrastructure"


def every_error(base: type[SleddogError] = SleddogError) -> Iterator[type[SleddogError]]:
    """An error of the tree and all below it; no two have one code."""
    yield base
    for error in base.__subclasses__():
        yield from every_error(error)
