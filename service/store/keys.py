"""API keys: made, listed, rotated, revoked, and recognised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotAuthenticatedError, NotFoundError
from service.spec.access import FIRST_USER, ApiKey, CreatedKey, NewKey, Rotation, Scope
from service.store.idempotency import IdempotencyTables, once
from service.store.key_text import HMAC_SCHEME, digest_of, is_same, new_api_key
from service.store.models import ApiKeyRow, MembershipRow, table_of
from service.store.principal import Origin, Principal

ALL_SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
_KEYS, _MEMBERSHIPS = table_of(ApiKeyRow).c, table_of(MembershipRow).c
_KEY_AND_ROLE = (
    select(*_KEYS, _MEMBERSHIPS.role)
    .outerjoin_from(
        ApiKeyRow,
        MembershipRow,
        (_MEMBERSHIPS.user_id == _KEYS.user_id) & (_MEMBERSHIPS.project_id == _KEYS.project_id),
    )
    .where(_KEYS.scheme == bindparam("scheme"))
)
_BY_ID = _KEY_AND_ROLE.where(_KEYS.id == bindparam("key_id"))
_BY_DIGEST = _KEY_AND_ROLE.where(_KEYS.digest == bindparam("digest"))
_USE_IS_NOTED_EVERY = timedelta(minutes=1)
"""So that reading does not write to the database each time."""


class KeyTables(IdempotencyTables):
    """Keys to the service: of a project those of the principal."""

    def has_keys(self) -> bool:
        """Whether there is any API key that is still of use."""
        now = datetime.now(UTC)
        unexpired = ApiKeyRow.expires_at.is_(None) | (ApiKeyRow.expires_at > now)
        with self._transaction() as session:
            query = select(ApiKeyRow.id).where(ApiKeyRow.revoked_at.is_(None), unexpired).limit(1)
            return session.scalar(query) is not None

    def add_key(self, text: str, *, scopes: Sequence[Scope] = ALL_SCOPES, user: str | None = None) -> ApiKey:
        """Accept a key made elsewhere from now on, as one of the first user's or another's; only its digest is kept."""
        with self._transaction() as session:
            row = self._add_key(session, text, name="first key", user_id=user or FIRST_USER, scopes=scopes)
        return _key(row)

    def create_key(self, new: NewKey, idempotency_key: str | None = None) -> tuple[CreatedKey, bool]:
        """Make a key; its text is in the answer, and nowhere else.

        Returns:
            The key, and whether it is new; repeated, it comes without its text.

        Raises:
            NotFoundError: its user is no member of the project.
            ConflictError: the idempotency key was used for something else.
        """
        text = new_api_key()

        def make(session: Session) -> str:
            user_id = new.user or (self._principal.user if self._principal else FIRST_USER)
            if session.get(MembershipRow, (self._project, user_id)) is None:
                raise NotFoundError(f"the project has no user {user_id!r}", "user")
            expires_at = new.expires_in_days and datetime.now(UTC) + timedelta(days=new.expires_in_days)
            row = self._add_key(session, text, name=new.name, user_id=user_id, scopes=new.scopes, expires_at=expires_at)
            self._record(session, f"/v1/keys/{row.id}")
            return row.id

        key_id, is_new = self._make_once(once("key", new, idempotency_key), make)
        return self._created(key_id, text if is_new else None), is_new

    def get_key(self, key_id: str) -> ApiKey:
        """One key.

        Raises:
            NotFoundError: the project has none of this id.
        """
        with self._transaction() as session:
            return _key(self._own(session, key_id))

    def list_keys(self, *, after: str | None = None, limit: int = 100) -> tuple[list[ApiKey], bool]:
        """The project's keys, newest first, also the revoked and expired ones; and whether there are more."""
        query = select(ApiKeyRow).where(ApiKeyRow.project_id == self._project)
        query = query.order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id.desc()).limit(limit + 1)
        if after is not None:
            last = self.get_key(after)
            is_older = ApiKeyRow.created_at < last.created_at
            is_next = (ApiKeyRow.created_at == last.created_at) & (ApiKeyRow.id < last.id)
            query = query.where(is_older | is_next)
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [_key(row) for row in rows[:limit]], len(rows) > limit

    def rotate_key(
        self, key_id: str, rotation: Rotation, idempotency_key: str | None = None
    ) -> tuple[CreatedKey, bool]:
        """Make another key in the place of one, which goes on working for a while.

        The new one lives as long from now on as the old one was to live from its making.

        Raises:
            NotFoundError: the project has no such key.
            ConflictError: it is revoked or expired; or the idempotency key was used for something else.
        """
        text = new_api_key()

        def make(session: Session) -> str:
            now, old = datetime.now(UTC), self._own(session, key_id)
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise ConflictError(f"key {key_id} no longer works; create another")
            expires_at = old.expires_at and now + (old.expires_at - old.created_at)
            like = {"name": old.name, "user_id": old.user_id, "scopes": old.scopes, "replaces": old.id}
            row = self._add_key(session, text, expires_at=expires_at, **like)
            last_moment = now + timedelta(seconds=rotation.overlap_s)
            old.expires_at = min(old.expires_at or last_moment, last_moment)
            self._record(session)
            return row.id

        new_id, is_new = self._make_once(once(f"rotation of {key_id}", rotation, idempotency_key), make)
        return self._created(new_id, text if is_new else None), is_new

    def revoke_key(self, key_id: str) -> ApiKey:
        """Refuse a key from now on, for good; revoking twice is no error.

        Raises:
            NotFoundError: the project has no such key.
        """
        with self._transaction() as session:
            row = self._own(session, key_id)
            if row.revoked_at is None:
                row.revoked_at = datetime.now(UTC)
                self._record(session)
        return _key(row)

    def authenticate(self, text: str, origin: Origin | None = None) -> Principal:
        """Whose key this is; unless its use is noted, `note_use` is to be called.

        Raises:
            NotAuthenticatedError: nobody's, or it no longer works.
        """
        given, now = digest_of(text, self._secret), datetime.now(UTC)
        if given.key_id is None:
            query, wanted = _BY_DIGEST, {"scheme": given.scheme, "digest": given.digest}
        else:
            query, wanted = _BY_ID, {"scheme": given.scheme, "key_id": given.key_id}
        with self._reading() as connection:
            row = connection.execute(query, wanted).one_or_none()
        if row is None or not is_same(row.digest, given.digest):
            raise NotAuthenticatedError("this API key is not valid")
        _require_usable(row.revoked_at, row.expires_at, row.role, now)
        is_noted = row.last_used_at is not None and now - row.last_used_at <= _USE_IS_NOTED_EVERY
        scopes = frozenset(row.scopes)
        return Principal(row.id, row.user_id, row.project_id, row.role, scopes, origin or Origin(), is_noted)

    def note_use(self, key_id: str) -> None:
        """A key is in use now."""
        with self._transaction() as session:
            used = update(ApiKeyRow).where(ApiKeyRow.id == key_id)
            session.execute(used.values(last_used_at=datetime.now(UTC)))

    def _add_key(self, session: Session, text: str, **fields: Any) -> ApiKeyRow:
        key = digest_of(text, self._secret)
        assert key.key_id is not None, "made by new_api_key"
        fields = {"project_id": self._project, "created_at": datetime.now(UTC)} | fields
        row = ApiKeyRow(id=key.key_id, scheme=HMAC_SCHEME, digest=key.digest, **fields)
        session.add(row)
        session.flush()
        return row

    def _created(self, key_id: str, text: str | None) -> CreatedKey:
        with self._transaction() as session:
            return shown(self._own(session, key_id), text)

    def _own(self, session: Session, key_id: str) -> ApiKeyRow:
        row = session.get(ApiKeyRow, key_id)
        if row is None or (self._principal is not None and row.project_id != self._principal.project):
            raise NotFoundError(f"there is no key {key_id!r}")
        return row


def _require_usable(revoked_at: datetime | None, expires_at: datetime | None, role: str | None, now: datetime) -> None:
    """Told only to who holds the whole key, so it gives nothing away."""
    if revoked_at is not None:
        raise NotAuthenticatedError("this API key was revoked")
    if expires_at is not None and expires_at <= now:
        raise NotAuthenticatedError("this API key has expired")
    if role is None:
        raise NotAuthenticatedError("the user of this API key is no longer a member of its project")


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        user=row.user_id,
        project=row.project_id,
        scopes=tuple(cast("list[Scope]", row.scopes)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        replaces=row.replaces,
    )


def shown(row: ApiKeyRow, text: str | None) -> CreatedKey:
    """A key with its text, for this once."""
    return CreatedKey(**_key(row).model_dump(), secret=text)
