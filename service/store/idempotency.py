"""Creating once: a request that is repeated with its Idempotency-Key gives what the first one made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import ConflictError
from service.spec.base import SpecModel
from service.store.engine import Tables
from service.store.models import IdempotencyRow


@dataclass(frozen=True)
class Once:
    """A create request that may be repeated.

    Attributes:
        key: its Idempotency-Key.
        kind: what it makes, such as `job`.
        body_sha256: of the body, every default filled in.
    """

    key: str
    kind: str
    body_sha256: str


def once(kind: str, body: SpecModel, idempotency_key: str | None) -> Once | None:
    """The request, if it has a key."""
    return None if idempotency_key is None else Once(idempotency_key, kind, body.sha256())


def used_otherwise() -> ConflictError:
    """What a key is answered with that was used for something else."""
    return ConflictError("this Idempotency-Key was used with another body; use a new one", "Idempotency-Key")


class IdempotencyTables(Tables):
    """What was made by requests with a key, project by project."""

    def find_made(self, request: Once | None) -> str | None:
        """Id of what a request made earlier; None when it has no key, or made nothing.

        Raises:
            ConflictError: the key was used for something else.
        """
        if request is None:
            return None
        with self._transaction() as session:
            used = session.get(IdempotencyRow, (self._project, request.key))
        if used is None:
            return None
        if (used.kind, used.body_sha256) != (request.kind, request.body_sha256):
            raise used_otherwise()
        return used.made_id

    @staticmethod
    def _forget_made(session: Session, kind: str, made_id: str) -> None:
        """With a thing that goes: the keys that made it may make another."""
        made_it = (IdempotencyRow.kind == kind) & (IdempotencyRow.made_id == made_id)
        session.execute(delete(IdempotencyRow).where(made_it))

    def _make_once(self, request: Once | None, make: Callable[[Session], str]) -> tuple[str, bool]:
        """Make something, or find what was made.

        Args:
            request: with its key; None makes something in any case.
            make: adds the rows, and gives the id.

        Returns:
            Its id, and whether it is new.

        Raises:
            ConflictError: the key was used for something else.
            IntegrityError: the rows contradict others.
        """
        made_id = self.find_made(request)
        if made_id is not None:
            return made_id, False
        try:
            with self._transaction() as session:
                made_id = make(session)
                if request is not None:
                    session.flush()
                    used = {"key": request.key, "body_sha256": request.body_sha256, "kind": request.kind}
                    session.add(IdempotencyRow(project_id=self._project, made_id=made_id, **used))
        except IntegrityError:
            made_id = self.find_made(request)  # the same request, a moment earlier
            if made_id is None:
                raise
            return made_id, False
        return made_id, True
