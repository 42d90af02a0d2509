"""Works on datasets in the background: verifies uploads, scans what is asked, removes what was deleted.

Two threads, so that an upload is verified while a long pass goes on. What is read is read by a process of its own
(`service.datasets.process`); the threads wait for it, and hold the claim on the work.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from service.datasets.limits import DatasetLimits
from service.datasets.process import ScanTask, Task, VerifyTask, run_task
from service.datasets.storage import DatasetFiles
from service.errors import InvalidDatasetError, SleddogError
from service.spec.resources import JobError
from service.store.dataset_claims import Claim
from service.store.store import Store

log = logging.getLogger(__name__)

LEASE_S = 60.0
_EXPIRY_INTERVAL_S = 600.0
"""Seconds between two looks for uploads that nobody completes: each writes to the database."""


class DatasetWorker:
    """The threads.

    Args:
        store: of all projects.
        files: of the datasets.
        limits: of the process that reads.
        interval_s: seconds between two looks for work.
    """

    def __init__(self, store: Store, files: DatasetFiles, limits: DatasetLimits, interval_s: float = 1.0) -> None:
        self._store, self._files, self._limits, self._interval_s = store, files, limits, interval_s
        self._last_expiry = -math.inf
        self._stopped = threading.Event()
        self._wakes: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to look for work."""
        for name, step in (("verify-datasets", self._verify_or_remove), ("scan-datasets", self._scan)):
            wake = threading.Event()
            self._wakes.append(wake)
            thread = threading.Thread(target=self._loop, args=(step, wake), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End; work that is not done is left to the next start."""
        self._stopped.set()
        self.wake()
        for thread in self._threads:
            thread.join()

    def wake(self) -> None:
        """Look now: something was asked."""
        for wake in self._wakes:
            wake.set()

    def work(self) -> None:
        """Do all that there is to do, here."""
        while any([self._verify_or_remove(), self._scan()]):
            pass

    def _loop(self, step: Callable[[], bool], wake: threading.Event) -> None:
        while not self._stopped.is_set():
            wake.clear()
            try:
                is_more = step()
            except Exception:
                log.exception("work on datasets failed; the next look follows in %.1f s", self._interval_s)
                is_more = False
            if not is_more:
                wake.wait(self._interval_s)

    def _verify_or_remove(self) -> bool:
        """One dataset; whether there was one."""
        if time.monotonic() - self._last_expiry > _EXPIRY_INTERVAL_S:
            self._last_expiry = time.monotonic()
            self._store.expire_uploads(self._limits.upload_expiry_s)
        for dataset_id in self._store.deleting_datasets():
            self._files.remove(dataset_id)
            self._store.finish_deletion(dataset_id)
        claim = self._store.claim_verification(LEASE_S)
        if claim is None:
            return False
        dataset = claim.dataset
        assert dataset.sha256 is not None, "set when it was completed"
        task = VerifyTask(
            part_urls=[self._files.part_url(dataset.id, sha256) for sha256 in claim.part_hashes],
            url=self._files.content_url(dataset.id, dataset.file_name),
            format=dataset.format,
            sha256=dataset.sha256,
            max_decompressed_bytes=self._limits.max_decompressed_bytes,
        )
        self._perform(claim, task, self._finish_verification)
        return True

    def _scan(self) -> bool:
        """One pass; whether there was one."""
        claim = self._store.claim_scan(LEASE_S)
        if claim is None:
            return False
        dataset = claim.dataset
        assert claim.reading is not None, "a claim on a scan"
        url = self._files.content_url(dataset.id, dataset.file_name)
        task = ScanTask(url=url, format=dataset.format, reading=claim.reading)
        self._perform(claim, task, self._finish_scan)
        return True

    def _perform(
        self, claim: Claim, task: Task, finish: Callable[[Claim, dict[str, Any] | None, JobError | None], None]
    ) -> None:
        """Do a task while its claim is held. A storage that does not answer leaves it to another try."""
        held = _Held(self._store, claim, self._stopped)
        limits = self._limits
        try:
            answer = run_task(
                task, memory_bytes=limits.memory_bytes, timeout_s=limits.scan_timeout_s, on_wait=held.go_on
            )
        except InvalidDatasetError as error:
            finish(held.claim, None, JobError(code=error.code, fault=error.fault, message=str(error)))
        except InterruptedError:
            self._store.release(held.claim)
        except SleddogError as error:
            log.warning("dataset %s: %s; another try follows in %.0f s", claim.dataset.id, error, LEASE_S)
        else:
            finish(held.claim, answer, None)

    def _finish_verification(self, claim: Claim, answer: dict[str, Any] | None, error: JobError | None) -> None:
        size: int | None = answer["decompressed_bytes"] if answer else None
        if self._store.finish_verification(claim, decompressed_bytes=size, error=error):
            self._files.remove_parts(claim.dataset.id)

    def _finish_scan(self, claim: Claim, answer: dict[str, Any] | None, error: JobError | None) -> None:
        self._store.finish_scan(claim, result=answer, error=error)


class _Held:
    """A claim that is held for as long as its work goes on."""

    def __init__(self, store: Store, claim: Claim, stopped: threading.Event) -> None:
        self._store, self.claim, self._stopped = store, claim, stopped
        self._num_waits = 0

    def go_on(self) -> bool:
        """Called every second; False when the work is nobody's business any more, or the service stops."""
        if self._stopped.is_set():
            return False
        self._num_waits += 1
        if self._num_waits % (LEASE_S // 4):
            return True
        held = self._store.hold(self.claim, LEASE_S)
        self.claim = held or self.claim
        return held is not None
