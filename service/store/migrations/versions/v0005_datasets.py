"""Datasets, their parts, what passes over them found, and which jobs read them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("project_id", sa.String(40), nullable=False),
        sa.Column("created_by", sa.String(100)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("file_name", sa.String(32), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("purpose", sa.String(32)),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("part_bytes", sa.Integer, nullable=False),
        sa.Column("num_parts", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("decompressed_bytes", sa.BigInteger),
        sa.Column("error", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True)),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_datasets_project", "datasets", ["project_id", "created_at", "id"])
    op.create_table(
        "dataset_parts",
        sa.Column("dataset_id", sa.String(63), sa.ForeignKey("datasets.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("num_bytes", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_table(
        "dataset_scans",
        sa.Column("dataset_id", sa.String(63), sa.ForeignKey("datasets.id"), primary_key=True),
        sa.Column("reading_sha256", sa.String(64), primary_key=True),
        sa.Column("reading", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "job_datasets",
        sa.Column("job_id", sa.String(63), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("dataset_id", sa.String(63), sa.ForeignKey("datasets.id"), primary_key=True, index=True),
    )
