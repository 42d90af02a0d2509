"""Priorities, places in the queue, what was used, and what projects may use."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs so far have no priority and have used nothing; projects have no limits."""
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("queue_position", sa.Integer))
    op.add_column("jobs", sa.Column("queue_reason", sa.String))
    op.add_column("jobs", sa.Column("queue_eta_s", sa.Double))
    op.add_column("jobs", sa.Column("gpu_seconds", sa.Double, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("charged_at", sa.DateTime(timezone=True)))
    op.add_column("projects", sa.Column("quotas", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("projects", sa.Column("used_gpu_s", sa.Double, nullable=False, server_default="0"))
    op.add_column("projects", sa.Column("used_at", sa.DateTime(timezone=True)))
    scheduler = op.create_table(
        "scheduler", sa.Column("id", sa.Integer, primary_key=True), sa.Column("turn", sa.Integer, nullable=False)
    )
    op.bulk_insert(scheduler, [{"id": 1, "turn": 0}])
