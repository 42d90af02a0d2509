"""Sweeps beside jobs: a column tells which a row is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """All rows so far are jobs."""
    op.add_column("jobs", sa.Column("kind", sa.String(16), nullable=False, server_default="job"))
