"""The ledger of preparation: every row that goes into a stage comes out of it or is counted where it went.

Each number is counted from what the stage made, not worked out from the others, so that a lost row shows: the run stops
then, because a result that lacks rows unseen is worth less than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

RowCounts = Counter[int]
"""Rows by the source's place in the spec."""


class Counted(Generic[T]):
    """Passes items through, and counts them.

    Attributes:
        count: items passed so far.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.count += 1
            yield item


class Ledger:
    """Rows of each source through the stages.

    Args:
        sources: names of the sources.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources
        self._on: RowCounts | None = None
        self._stages: list[dict[str, Any]] = []

    def stage(
        self, name: str, rows_in: RowCounts, on: RowCounts, made: RowCounts | None = None, **gone: RowCounts
    ) -> None:
        """Enter a stage.

        Args:
            name: of the stage.
            rows_in: what it was given.
            on: what goes on to the next.
            made: what a row gave beyond one: a tree of messages several conversations.
            **gone: what does not go on, by the reason.

        Raises:
            AssertionError: rows were lost or made up, here or since the stage before.
        """
        if self._on is not None and +self._on != +rows_in:
            raise AssertionError(f"{dict(self._on)} rows by source came to stage {name!r}, it knows of {dict(rows_in)}")
        made = made or Counter()
        for number, source in enumerate(self._sources):
            out = {"on": on[number], **{reason: rows[number] for reason, rows in gone.items()}}
            if rows_in[number] + made[number] != sum(out.values()):
                given = f"{rows_in[number]} in, {made[number]} made"
                raise AssertionError(f"stage {name!r} lost rows of source {source!r}: {given}, {out} out")
        self._on = on
        reasons = {reason: rows.total() for reason, rows in gone.items()}
        counts = {"rows_in": rows_in.total(), "made": made.total(), "rows_out": on.total()}
        self._stages.append({"stage": name, **counts, "gone": reasons})

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What was entered: `stage`, `rows_in`, `made`, `rows_out`, and `gone` by reason."""
        return self._stages
