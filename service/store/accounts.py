"""Projects, and the users that are their members."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotFoundError
from service.spec.access import (
    DEFAULT_PROJECT,
    FIRST_USER,
    CreatedProject,
    NewProject,
    NewUser,
    Project,
    Quotas,
    Role,
    User,
)
from service.store.idempotency import once
from service.store.key_text import new_api_key
from service.store.keys import ALL_SCOPES, KeyTables, shown
from service.store.models import ApiKeyRow, MembershipRow, ProjectRow, UserRow


class AccountTables(KeyTables):
    """Who belongs where."""

    def create_project(self, new: NewProject, idempotency_key: str | None = None) -> tuple[CreatedProject, bool]:
        """Make a project, with who asks as its first admin, and a key for them.

        Returns:
            The project, and whether it is new; repeated, it comes without the key.

        Raises:
            ConflictError: there is one of this id; or the idempotency key was used for something else.
        """
        text, first_keys = new_api_key(), []

        def make(session: Session) -> str:
            now, user_id = datetime.now(UTC), self._principal.user if self._principal else FIRST_USER
            session.add(ProjectRow(id=new.id, created_at=now))
            session.flush()
            session.add(MembershipRow(project_id=new.id, user_id=user_id, role="admin", created_at=now))
            fields = {"project_id": new.id, "user_id": user_id, "scopes": list(ALL_SCOPES)}
            first_keys.append(self._add_key(session, text, name="first key", **fields))
            self._record(session, f"/v1/projects/{new.id}")
            return new.id

        try:
            _, is_new = self._make_once(once("project", new, idempotency_key), make)
        except IntegrityError:
            raise ConflictError(f"there is a project {new.id!r} already", "id") from None
        with self._transaction() as session:
            project = project_of(session.get_one(ProjectRow, new.id))
        first_key = shown(first_keys[-1], text) if is_new else None
        return CreatedProject(**project.model_dump(), first_key=first_key), is_new

    def list_projects(self, *, after: str | None = None, limit: int = 100) -> tuple[list[Project], bool]:
        """Projects by id, from the one after `after` on; and whether there are more.

        The default project's admins see all, others their own.
        """
        query = select(ProjectRow).order_by(ProjectRow.id).limit(limit + 1)
        principal = self._principal
        if principal is not None and (principal.project, principal.role) != (DEFAULT_PROJECT, "admin"):
            query = query.where(ProjectRow.id == principal.project)
        if after is not None:
            query = query.where(ProjectRow.id > after)
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [project_of(row) for row in rows[:limit]], len(rows) > limit

    def create_user(self, new: NewUser, idempotency_key: str | None = None) -> tuple[User, bool]:
        """Take a user into the project.

        Returns:
            The user, and whether this made them a member.

        Raises:
            ConflictError: they are a member already; or the idempotency key was used for something else.
        """

        def make(session: Session) -> str:
            now = datetime.now(UTC)
            if session.get(UserRow, new.id) is None:
                session.add(UserRow(id=new.id, created_at=now))
                session.flush()
            session.add(MembershipRow(project_id=self._project, user_id=new.id, role=new.role, created_at=now))
            self._record(session, f"/v1/users/{new.id}")
            return new.id

        try:
            user_id, is_new = self._make_once(once("user", new, idempotency_key), make)
        except IntegrityError:
            raise ConflictError(f"{new.id!r} is a member of the project already", "id") from None
        return self.get_user(user_id), is_new

    def get_user(self, user_id: str) -> User:
        """One member of the project.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            return _user(self._member(session, user_id))

    def list_users(self, *, after: str | None = None, limit: int = 100) -> tuple[list[User], bool]:
        """Members of the project by id, from the one after `after` on; and whether there are more."""
        query = select(MembershipRow).where(MembershipRow.project_id == self._project)
        query = query.order_by(MembershipRow.user_id).limit(limit + 1)
        if after is not None:
            query = query.where(MembershipRow.user_id > after)
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [_user(row) for row in rows[:limit]], len(rows) > limit

    def change_role(self, user_id: str, role: Role) -> User:
        """Give a member another role.

        Raises:
            NotFoundError: there is no such member.
            ConflictError: the project would be left without an admin.
        """
        with self._transaction() as session:
            row = self._member(session, user_id)
            row.role = role
            self._require_admin(session)
            self._record(session)
        return _user(row)

    def remove_user(self, user_id: str) -> None:
        """End a membership, and revoke the member's keys to the project.

        Raises:
            NotFoundError: there is no such member.
            ConflictError: the project would be left without an admin.
        """
        with self._transaction() as session:
            session.delete(self._member(session, user_id))
            self._require_admin(session)
            theirs = (ApiKeyRow.project_id == self._project) & (ApiKeyRow.user_id == user_id)
            still = theirs & ApiKeyRow.revoked_at.is_(None)
            session.execute(update(ApiKeyRow).where(still).values(revoked_at=datetime.now(UTC)))
            self._record(session)

    def _member(self, session: Session, user_id: str) -> MembershipRow:
        row = session.get(MembershipRow, (self._project, user_id), with_for_update=True)
        if row is None:
            raise NotFoundError(f"the project has no user {user_id!r}")
        return row

    def _require_admin(self, session: Session) -> None:
        session.flush()
        of_project = (MembershipRow.project_id == self._project) & (MembershipRow.role == "admin")
        if session.scalar(select(func.count()).select_from(MembershipRow).where(of_project)) == 0:
            raise ConflictError("the project would be left without an admin")


def project_of(row: ProjectRow) -> Project:
    """The resource that a row holds."""
    return Project(id=row.id, created_at=row.created_at, quotas=Quotas.model_validate(row.quotas))


def _user(row: MembershipRow) -> User:
    return User(id=row.user_id, role=cast("Role", row.role), created_at=row.created_at)
