"""The store: every change of a job's state is a compare-and-set in one transaction.

The store is the truth about what was asked and decided; Ray is only observed. So a caller first writes what it is about
to do, then does it, and after a crash the reconciler finds the intent here.
"""

from __future__ import annotations

from service.store.accounts import AccountTables
from service.store.audit import AuditTables
from service.store.counts import CountTables
from service.store.dataset_claims import DatasetClaimTables
from service.store.datasets import DatasetTables
from service.store.fine_tuning import FineTuningTables
from service.store.heads import HeadTables
from service.store.lifecycle import LifecycleTables
from service.store.registered_models import RegisteredModelTables
from service.store.usage import UsageTables
from service.store.waiting import WaitingTables
from service.store.webhooks import WebhookTables


class Store(
    FineTuningTables,
    HeadTables,
    CountTables,
    LifecycleTables,
    DatasetTables,
    DatasetClaimTables,
    RegisteredModelTables,
    WebhookTables,
    AccountTables,
    UsageTables,
    WaitingTables,
    AuditTables,
):
    """Jobs and sweeps, their events; datasets; models; webhooks; projects, users, keys; the record of what they did.

    Made with a database it sees all, as the service itself does; `store.of(principal)` sees one project.
    """
