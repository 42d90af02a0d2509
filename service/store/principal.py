"""Who does something with the store, and by which request."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.spec.access import Role, Scope


@dataclass
class Origin:
    """The request behind a change.

    Attributes:
        request_id: its id.
        address: where it came from.
        action: name of the operation, such as `cancel_job`.
        target: its path.
        is_recorded: whether what it did is in the record, with what it did.
    """

    request_id: str = ""
    address: str = ""
    action: str = ""
    target: str = ""
    is_recorded: bool = False


@dataclass(frozen=True)
class Principal:
    """The user behind a valid key.

    Attributes:
        key_id: of the key.
        user: its owner.
        project: the one project that it opens.
        role: of the user there.
        scopes: of the key.
        origin: the request.
        is_use_noted: whether the store knows that the key is in use.
    """

    key_id: str
    user: str
    project: str
    role: Role
    scopes: frozenset[Scope]
    origin: Origin = field(default_factory=Origin, compare=False)
    is_use_noted: bool = field(default=True, compare=False)
