"""Projects, users, their roles and keys, and the record of what they did; what was there is the default project's.

Keys of before keep working: the digest that was their primary key is now one scheme of two.
"""

import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PROJECT, _USER = "default", "admin"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables, and move keys and idempotency keys over."""
    _create_accounts()
    _give_jobs_a_project()
    _move_keys()
    _move_idempotency_keys()
    _create_audit()


def _create_accounts() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("created_at", _TIME, nullable=False),
    )
    users = op.create_table(
        "users",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("created_at", _TIME, nullable=False),
    )
    memberships = op.create_table(
        "memberships",
        sa.Column("project_id", sa.String(40), sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("user_id", sa.String(100), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    now = datetime.now(UTC)
    op.bulk_insert(projects, [{"id": _PROJECT, "created_at": now}])
    op.bulk_insert(users, [{"id": _USER, "created_at": now}])
    op.bulk_insert(memberships, [{"project_id": _PROJECT, "user_id": _USER, "role": "admin", "created_at": now}])


def _give_jobs_a_project() -> None:
    op.add_column("jobs", sa.Column("project_id", sa.String(40), nullable=False, server_default=_PROJECT))
    op.add_column("jobs", sa.Column("created_by", sa.String(100)))
    op.create_index("ix_jobs_project", "jobs", ["project_id", "kind", "created_at", "id"])


def _move_keys() -> None:
    old = op.get_bind().execute(sa.text("SELECT sha256, created_at FROM api_keys")).all()
    op.drop_table("api_keys")
    keys = op.create_table(
        "api_keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("scheme", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("user_id", sa.String(100), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("project_id", sa.String(40), sa.ForeignKey("projects.id"), nullable=False, index=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("last_used_at", _TIME),
        sa.Column("revoked_at", _TIME),
        sa.Column("replaces", sa.String(16)),
    )
    rows = [
        {
            "id": secrets.token_hex(6),
            "scheme": "sha256",
            "digest": digest,
            "name": "from before projects",
            "user_id": _USER,
            "project_id": _PROJECT,
            "scopes": ["read", "write", "admin"],
            "created_at": datetime.fromisoformat(created_at) if isinstance(created_at, str) else created_at,
        }
        for digest, created_at in old
    ]
    op.bulk_insert(keys, rows)


def _move_idempotency_keys() -> None:
    query = "SELECT k.key, k.body_sha256, j.kind, j.id FROM idempotency_keys k JOIN jobs j ON j.id = k.job_id"
    old = op.get_bind().execute(sa.text(query)).all()
    op.drop_table("idempotency_keys")
    keys = op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(40), sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("made_id", sa.String(255), nullable=False),
    )
    columns = ("key", "body_sha256", "kind", "made_id")
    op.bulk_insert(keys, [{"project_id": _PROJECT, **dict(zip(columns, row, strict=True))} for row in old])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False, index=True),
        sa.Column("project_id", sa.String(40), index=True),
        sa.Column("user_id", sa.String(100)),
        sa.Column("key_id", sa.String(16)),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(512), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64)),
    )
