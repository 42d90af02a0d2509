"""Checkpoints that a project has given names."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from service.errors import ConflictError, NotFoundError
from service.spec.registry import NewModel, RegisteredModel
from service.store.engine import Tables
from service.store.models import RegisteredModelRow


class RegisteredModelTables(Tables):
    """Registered models, of the project of the principal."""

    def register_model(self, new: NewModel) -> tuple[RegisteredModel, bool]:
        """Give a checkpoint a name; registering the same again changes nothing.

        Returns:
            The model, and whether it is new.

        Raises:
            ConflictError: the name is another checkpoint's.
        """
        try:
            return self._register(new)
        except IntegrityError:  # somebody else has registered the name at this moment
            return self._register(new)

    def _register(self, new: NewModel) -> tuple[RegisteredModel, bool]:
        with self._transaction() as session:
            row = session.get(RegisteredModelRow, (self._project, new.name))
            if row is not None and row.uri != new.uri:
                raise ConflictError(f"model {new.name!r} is {row.uri}; delete it first, or take another name", "name")
            is_new = row is None
            if row is None:
                row = RegisteredModelRow(project_id=self._project, created_at=datetime.now(UTC), **new.model_dump())
                row.created_by = self._principal.user if self._principal else None
                session.add(row)
                self._record(session, f"/v1/models/{new.name}")
            return RegisteredModel.model_validate(row, from_attributes=True), is_new

    def find_model(self, name: str) -> RegisteredModel | None:
        """A model; None when the project has none of this name."""
        with self._transaction() as session:
            row = session.get(RegisteredModelRow, (self._project, name))
            return None if row is None else RegisteredModel.model_validate(row, from_attributes=True)

    def list_models(self) -> list[RegisteredModel]:
        """All of the project, by name."""
        query = select(RegisteredModelRow).where(RegisteredModelRow.project_id == self._project)
        with self._transaction() as session:
            rows = session.scalars(query.order_by(RegisteredModelRow.name)).all()
        return [RegisteredModel.model_validate(row, from_attributes=True) for row in rows]

    def delete_model(self, name: str) -> None:
        """Forget a name; the checkpoint stays where it is.

        Raises:
            NotFoundError: the project has none of this name.
        """
        is_it = (RegisteredModelRow.project_id == self._project) & (RegisteredModelRow.name == name)
        with self._transaction() as session:
            deleted = session.execute(delete(RegisteredModelRow).where(is_it))
            if deleted.rowcount != 1:  # type: ignore[attr-defined]
                raise NotFoundError(f"there is no registered model {name!r}")
            self._record(session)
