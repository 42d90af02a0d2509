"""The first tables: jobs, events, segments, API keys, idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_sha256", sa.String(64), nullable=False),
        sa.Column("run_url", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(63), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("event", sa.JSON, nullable=False),
    )
    op.create_index("ix_events_job_step", "events", ["job_id", "step"])
    op.create_index("ix_events_job_type", "events", ["job_id", "type"])
    op.create_table(
        "segments",
        sa.Column("job_id", sa.String(63), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
    )
    op.create_table(
        "api_keys",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(63), sa.ForeignKey("jobs.id"), nullable=False),
    )
