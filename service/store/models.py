"""The tables. Migrations in `service/store/migrations` follow them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, String, Table, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; SQLite forgets time zones, so it is stored and read as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse times without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give the zone back."""
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


class Base(DeclarativeBase):
    """Base of the tables."""


def table_of(row: type[Base]) -> Table:
    """The table, for statements that make no objects: they take a fraction of the time."""
    return cast("Table", row.__table__)


class JobRow(Base):
    """One job or one sweep, which is run like a job: what was asked, how it stands."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), server_default="job")
    # without a foreign key, which SQLite cannot add to a table that has rows; projects are never deleted
    project_id: Mapped[str] = mapped_column(String(40), server_default="default")
    created_by: Mapped[str | None] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    spec_sha256: Mapped[str] = mapped_column(String(64))
    run_url: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    retry_of: Mapped[str | None] = mapped_column(String(63))
    attempts_before: Mapped[int] = mapped_column(server_default="0", default=0)
    priority: Mapped[int] = mapped_column(server_default="0", default=0)
    queue_position: Mapped[int | None]
    queue_reason: Mapped[str | None]
    queue_eta_s: Mapped[float | None]
    gpu_seconds: Mapped[float] = mapped_column(server_default="0", default=0.0)
    charged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        Index("ix_jobs_kind_status", "kind", "status"),
        Index("ix_jobs_project", "project_id", "kind", "created_at", "id"),
    )


class SchedulerRow(Base):
    """One row: how many queued runs were started, so that of two who decide at once one is late."""

    __tablename__ = "scheduler"
    id: Mapped[int] = mapped_column(primary_key=True)
    turn: Mapped[int]


class EventRow(Base):
    """One event of a job; `step` is set for metrics only, and indexes them."""

    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    step: Mapped[int | None]
    event: Mapped[dict[str, Any]] = mapped_column(JSON)

    __table_args__ = (Index("ix_events_job_step", "job_id", "step"), Index("ix_events_job_type", "job_id", "type"))


class SegmentRow(Base):
    """An event segment that was ingested, so that it never is again."""

    __tablename__ = "segments"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)


class ProjectRow(Base):
    """A project."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    quotas: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}", default=dict)
    used_gpu_s: Mapped[float] = mapped_column(server_default="0", default=0.0)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class UserRow(Base):
    """A user, whatever projects they are in."""

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class MembershipRow(Base):
    """What a user may do in a project."""

    __tablename__ = "memberships"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiKeyRow(Base):
    """An API key: of its 256 random bits only a digest, by the method that `scheme` names."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    scheme: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    replaces: Mapped[str | None] = mapped_column(String(16))


class IdempotencyRow(Base):
    """What a create request with this key made in this project."""

    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    made_id: Mapped[str] = mapped_column(String(255))


class AuditRow(Base):
    """A write, or an access that was refused; only ever appended."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    request_id: Mapped[str] = mapped_column(String(32), index=True)
    project_id: Mapped[str | None] = mapped_column(String(40), index=True)
    user_id: Mapped[str | None] = mapped_column(String(100))
    key_id: Mapped[str | None] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(512))
    outcome: Mapped[str] = mapped_column(String(16))
    code: Mapped[str | None] = mapped_column(String(64))


class DatasetRow(Base):
    """One uploaded file. A deleted one stays as a row, so that a job's past can still be told."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))
    created_by: Mapped[str | None] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(255))
    file_name: Mapped[str] = mapped_column(String(32))
    format: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16), index=True)
    purpose: Mapped[str | None] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    part_bytes: Mapped[int]
    num_parts: Mapped[int]
    sha256: Mapped[str | None] = mapped_column(String(64))
    decompressed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ready_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    claimed_until: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_datasets_project", "project_id", "created_at", "id"),)


class DatasetPartRow(Base):
    """A part that has arrived, by the hash of its content."""

    __tablename__ = "dataset_parts"
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    num_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))


class DatasetScanRow(Base):
    """One pass over a dataset, read in one way; `result` holds what `validate` and `statistics` answer."""

    __tablename__ = "dataset_scans"
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    reading_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    reading: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16), index=True)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    claimed_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobDatasetRow(Base):
    """A job or a sweep reads a dataset."""

    __tablename__ = "job_datasets"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True, index=True)


class FineTuningRow(Base):
    """The request in OpenAI's form that a job came by."""

    __tablename__ = "fine_tuning_requests"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    is_paused: Mapped[bool] = mapped_column(default=False)


class RegisteredModelRow(Base):
    """A checkpoint that a project has given a name."""

    __tablename__ = "registered_models"
    project_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    uri: Mapped[str]
    created_by: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookRow(Base):
    """A receiver of messages. Its secret is in no table: it follows from the server's and the id."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[list[str]] = mapped_column(JSON)
    description: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_reason: Mapped[str | None] = mapped_column(String(200))


class DeliveryRow(Base):
    """A message to a receiver: pending, delivered, or failed for good."""

    __tablename__ = "webhook_deliveries"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    type: Mapped[str] = mapped_column(String(32))
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(500))

    __table_args__ = (
        Index("ix_webhook_deliveries_due", "status", "next_attempt_at"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "created_at"),
    )
