"""Requests in OpenAI's form, and registered models."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "fine_tuning_requests",
        sa.Column("job_id", sa.String(63), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("is_paused", sa.Boolean, nullable=False),
    )
    op.create_table(
        "registered_models",
        sa.Column("project_id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("uri", sa.String, nullable=False),
        sa.Column("created_by", sa.String(100)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
