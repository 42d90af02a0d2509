"""Jobs that are retried or resumed: what a job is a retry of, and the attempts before it was resumed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No job so far is either."""
    op.add_column("jobs", sa.Column("retry_of", sa.String(63)))
    op.add_column("jobs", sa.Column("attempts_before", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_jobs_kind_status", "jobs", ["kind", "status"])
