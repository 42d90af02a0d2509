"""Takes in what runs say of themselves: new segments of events, each once, into the store."""

from __future__ import annotations

import logging
from collections.abc import Collection

from service.run_reader import new_segments, read_segment
from service.spec.resources import Run
from service.store.store import Store

log = logging.getLogger(__name__)


class Intake:
    """Reads run directories.

    Args:
        store: where the events go.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, set[str]] = {}

    def keep(self, run_ids: Collection[str]) -> None:
        """Forget all but some runs; what is needed again is read from the store."""
        self._known = {run_id: names for run_id, names in self._known.items() if run_id in run_ids}

    def num_taken(self, run_id: str) -> int:
        """Segments of a run so far: when it grows, somebody has written."""
        return len(self._known.get(run_id, ()))

    def try_to_take(self, run: Run) -> bool:
        """Take in the run's new events; False when the run directory or the store did not answer."""
        try:
            self._take(run)
        except Exception:
            log.exception("%s: its events could not be taken in; the next try follows", run.id)
            return False
        return True

    def _take(self, run: Run) -> None:
        if run.id not in self._known:
            self._known[run.id] = self._store.ingested_segments(run.id)
        known = self._known[run.id]
        for name in new_segments(run.run_url, known):
            try:
                events = read_segment(run.run_url, name)
            except ValueError:
                log.exception("%s: segment %s holds no events that this version knows; passed over", run.id, name)
                events = []
            self._store.ingest_segment(run.id, name, events)
            known.add(name)
