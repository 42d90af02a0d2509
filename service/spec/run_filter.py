"""Which jobs or sweeps a list is to hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from service.spec.resources import JobStatus


@dataclass(frozen=True)
class RunFilter:
    """What all of a list have in common; what is left out is not asked.

    Attributes:
        statuses: they stand in one of these; any when empty.
        name: a part of their names.
        created_after: they were created then or later; a time with its zone.
        created_before: they were created earlier; likewise.
    """

    statuses: tuple[JobStatus, ...] = ()
    name: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


EVERYTHING = RunFilter()
"""All there are."""
