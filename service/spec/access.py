"""Who may use the service: projects, users with a role in each, API keys, and the record of what they did."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from service.spec.base import SpecModel
from service.spec.resources import MAX_PRIORITY, MIN_PRIORITY, Resource

Role = Literal["viewer", "member", "admin"]
"""What a user may do in a project: look; start and stop things, too; give others access, too."""
Scope = Literal["read", "write", "admin"]
"""What a key may do of that."""
Outcome = Literal["done", "refused", "failed"]

DEFAULT_PROJECT = "default"
"""Holds what was there before projects were; its admins create the others."""
FIRST_USER = "admin"
"""Owner of the first key."""

ProjectId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
UserId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")]


class NewProject(SpecModel):
    """A project to be created."""

    id: ProjectId
    """Its name, for good."""


class Quotas(SpecModel):
    """What a project may use. A worker counts as a GPU, also where it runs on CPUs. Null is no limit."""

    max_running_jobs: int | None = Field(default=None, ge=0)
    """Jobs and sweeps at a time; the others wait."""
    max_gpus: int | None = Field(default=None, ge=1)
    """Of all its running jobs together; what needs more by itself is refused."""
    max_gpu_hours: float | None = Field(default=None, ge=0)
    """Used by the jobs of the last 30 days; when they are used up, nothing more starts, and what runs goes on."""
    max_gpu_hours_per_job: float | None = Field(default=None, ge=0)
    """By the plan of a job; what is planned to take more, or cannot be planned, waits until an admin approves it."""
    max_priority: int = Field(default=MAX_PRIORITY, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    """That its jobs may ask for."""
    weight: float = Field(default=1.0, gt=0)
    """Its part of a full cluster, relative to other projects'."""


class ProjectChange(SpecModel):
    """New quotas, in the place of all those before."""

    quotas: Quotas


class Project(Resource):
    """Jobs, sweeps and all else that its members see and others do not."""

    id: str
    created_at: datetime
    quotas: Quotas = Quotas()


class NewUser(SpecModel):
    """A user to be taken into the key's project."""

    id: UserId
    """A name or an e-mail address, for good; the same in all projects."""
    role: Role = "member"


class UserChange(SpecModel):
    """A new role."""

    role: Role


class User(Resource):
    """A user, as a member of the key's project."""

    id: str
    role: Role
    created_at: datetime
    """When the user became a member."""


class NewKey(SpecModel):
    """An API key to be made, for the project of the key that asks."""

    name: str = Field(min_length=1, max_length=100)
    """What it is for, in words."""
    user: UserId | None = None
    """Whose it is: a member of the project; by default of who asks. It never may more than its user."""
    scopes: tuple[Scope, ...] = Field(default=("read", "write"), min_length=1)
    """What it may do, of that which its user may."""
    expires_in_days: float | None = Field(default=None, gt=0, le=3650)
    """Days until it is refused; by default never."""


class Rotation(SpecModel):
    """How a key is replaced."""

    overlap_s: float = Field(default=86_400.0, ge=0, le=30 * 86_400)
    """Seconds for which the old key still works."""


class ApiKey(Resource):
    """An API key; its secret is kept by nobody but its owner."""

    id: str
    """Public; the middle of the key's text, `sd-<id>-<secret>`."""
    name: str
    user: str
    project: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """Of the last minute or so in which it was used."""
    revoked_at: datetime | None = None
    replaces: str | None = None
    """The key that it was made to replace."""


class CreatedKey(ApiKey):
    """A key just made."""

    secret: str | None = None
    """The whole text of the key, shown this once; null when the request was a repeated one."""


class CreatedProject(Project):
    """A project just made."""

    first_key: CreatedKey | None = None
    """A key with all scopes for who made it, who is its first admin; null when the request was a repeated one."""


class Me(Resource):
    """Who a key is."""

    key_id: str
    user: str
    project: str
    role: Role
    scopes: tuple[Scope, ...]


class AuditEntry(Resource):
    """A write, or an access that was refused."""

    id: int
    """Rises; what `after` takes."""
    time: datetime
    request_id: str
    """As the answer's `X-Request-Id` and the log have it."""
    project: str | None = None
    """Null where no valid key was sent, as user and key are."""
    user: str | None = None
    key_id: str | None = None
    address: str
    """Where the request came from."""
    action: str
    """Name of the operation, such as `cancel_job`."""
    target: str
    """Path of what it was done to."""
    outcome: Outcome
    code: str | None = None
    """Of the problem, if it was not done."""
