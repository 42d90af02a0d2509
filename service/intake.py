"""Takes in what runs say of themselves: new segments of events, each once, into the store."""

from __future__ import annotations

import logging
from collections.abc import Collection

from service.look_record import LookRecord
from service.run_reader import new_segments, read_segment
from service.spec.event import segment_group
from service.spec.resources import Run
from service.store.store import Store

log = logging.getLogger(__name__)


class Intake:
    """Reads run directories.

    Args:
        store: where the events go.
        record: of what was taken in.
    """

    def __init__(self, store: Store, record: LookRecord) -> None:
        self._store, self._record = store, record
        self._known: dict[str, _Known] = {}

    def keep(self, run_ids: Collection[str]) -> None:
        """Forget all but some runs; what is needed again is read from the store."""
        self._known = {run_id: known for run_id, known in self._known.items() if run_id in run_ids}

    def num_taken(self, run_id: str) -> int:
        """Segments of a run so far: when it grows, somebody has written."""
        known = self._known.get(run_id)
        return 0 if known is None else len(known.names)

    def try_to_take(self, run: Run, *, all_groups: bool = False) -> bool:
        """Take in the run's new events.

        Args:
            run: whose they are.
            all_groups: look where late ones may lie, too; else only where the newest are, and after those.

        Returns:
            False when the run directory or the store did not answer.
        """
        try:
            self._take(run, all_groups=all_groups)
        except Exception:
            self._record.num_intake_failures += 1
            log.exception("%s: its events could not be taken in; the next try follows", run.id)
            return False
        return True

    def _take(self, run: Run, *, all_groups: bool) -> None:
        if run.id not in self._known:
            self._known[run.id] = _Known(self._store.ingested_segments(run.id))
        known = self._known[run.id]
        for name in new_segments(run.run_url, known.names, "" if all_groups else known.since):
            try:
                events = read_segment(run.run_url, name)
            except ValueError:
                log.exception("%s: segment %s holds no events that this version knows; passed over", run.id, name)
                events = []
            self._store.ingest_segment(run.id, name, events)
            known.add(name)
            self._record.num_events += len(events)


class _Known:
    """Names of segments that were taken in.

    Args:
        names: those of earlier times.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self._groups = sorted({segment_group(name) for name in names})[-2:]

    @property
    def since(self) -> str:
        """The last group but one: writers' clocks may differ by some minutes."""
        return self._groups[0] if len(self._groups) > 1 else ""

    def add(self, name: str) -> None:
        """One more."""
        self.names.add(name)
        group = segment_group(name)
        if group not in self._groups:
            self._groups = sorted([*self._groups, group])[-2:]
