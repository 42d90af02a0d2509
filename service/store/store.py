"""The store: every change of a job's state is a compare-and-set in one transaction.

The store is the truth about what was asked and decided; Ray is only observed. So a caller first writes what it is about
to do, then does it, and after a crash the reconciler finds the intent here.
"""

from __future__ import annotations

from service.store.counts import CountTables
from service.store.events import EventTables
from service.store.heads import HeadTables
from service.store.keys import KeyTables
from service.store.lifecycle import LifecycleTables


class Store(EventTables, HeadTables, LifecycleTables, CountTables, KeyTables):
    """Jobs and sweeps, their events, and API keys."""
