"""Checkpoints written beside the training.

A step stands still only while its worker copies what it owns. Then a thread writes the shard; when those of all workers
are there, worker 0's thread writes the manifest and deletes what is not kept. One checkpoint is under way at a time: if
one is due while the last is not done, because the storage is slow or fails, it is left out. A thread tries again, after
growing pauses, until the time is up that a checkpoint may take.

    <url>/attempt-<n>/<step>-<token of the worker group>/

No directory is ever written twice, so a shard never meets another group's manifest.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from fsspec.core import url_to_fs

from ray_jobs.fence import Fence
from ray_jobs.train.checkpoint import (
    TrainingState,
    WrittenShard,
    read_manifest,
    take_snapshot,
    write_manifest,
    write_shard,
)
from service.errors import StorageError, SupersededError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_POLL_INTERVAL_S = 0.05

_logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Advance:
    """What became of the checkpoint under way; the same on all workers.

    Attributes:
        saved: its path below the url and its state, if it is whole now.
        is_delayed: some worker's storage has failed since the last call, and is tried again.
    """

    saved: tuple[str, TrainingState] | None = None
    is_delayed: bool = False


@dataclass
class _UnderWay:
    path: str
    state: TrainingState
    data: dict[str, Any]
    shard: Future[WrittenShard]
    manifest: Future[None] | None = None


class CheckpointWriter:
    """Writes one run's checkpoints; all workers must make and call it together.

    Args:
        engine: trains.
        url: holds all attempts' checkpoints.
        attempt: the job's.
        num_kept: whole checkpoints that stay.
        timeout_s: how long one may take before the run fails, failures of the storage included.
        fence: looked at before a shard or a manifest is written.
    """

    def __init__(
        self, engine: DeepSpeedEngine, url: str, attempt: int, num_kept: int, timeout_s: float, *, fence: Fence
    ) -> None:
        self._engine, self._url, self._attempt, self._fence = engine, url, attempt, fence
        self._num_kept, self._timeout_s = num_kept, timeout_s
        tokens = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(tokens)
        self._token = tokens[0]
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._closed = threading.Event()
        self._has_failed = threading.Event()
        self._under_way: _UnderWay | None = None

    def begin(self, state: TrainingState, data: dict[str, Any]) -> bool:
        """Start a checkpoint of the engine as it is now.

        Args:
            state: how far the run is.
            data: the cursor of its rows.

        Returns:
            False if the last one is still under way, and none was started.
        """
        if self._under_way is not None:
            return False
        path = f"attempt-{self._attempt}/{state.step:08d}-{self._token}"
        snapshot, url, rank = take_snapshot(self._engine), f"{self._url}/{path}", dist.get_rank()
        shard = self._thread.submit(self._persist, lambda: write_shard(snapshot, url, rank))
        self._under_way = _UnderWay(path, state, data, shard)
        return True

    def advance(self) -> Advance:
        """Go on with the checkpoint under way, without waiting for the storage.

        Raises:
            StorageError: some worker could not write in time.
            SupersededError: others have replaced these workers.
        """
        if self._under_way is None:
            return Advance()
        under_way, mine = self._under_way, self._under_way.manifest or self._under_way.shard
        is_failed = mine.done() and mine.exception() is not None
        flags = [not mine.done(), is_failed, self._has_failed.is_set()]
        self._has_failed.clear()
        shared = torch.tensor(flags, dtype=torch.int32, device=self._engine.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        is_pending, has_failed, is_delayed = map(bool, shared.tolist())
        if has_failed:
            if is_failed:
                mine.result()
            raise StorageError(f"another worker could not write its part of {self._url}/{under_way.path} in time")
        if is_pending:
            return Advance(is_delayed=is_delayed)
        if under_way.manifest is None:
            under_way.manifest = self._commit(under_way)
            return Advance(is_delayed=is_delayed)
        self._under_way = None
        return Advance((under_way.path, under_way.state), is_delayed)

    def _commit(self, under_way: _UnderWay) -> Future[None]:
        shards: list[WrittenShard] = [under_way.shard.result()] * dist.get_world_size()
        dist.all_gather_object(shards, shards[0])
        if dist.get_rank() != 0:
            done: Future[None] = Future()
            done.set_result(None)
            return done

        def work() -> None:
            write_manifest(f"{self._url}/{under_way.path}", under_way.state, under_way.data, shards)
            prune(self._url, self._attempt, self._num_kept)

        return self._thread.submit(self._persist, work)

    def finish(self) -> Advance:
        """Wait for the checkpoint under way; an empty answer if there is none."""
        is_delayed = False
        while self._under_way is not None:
            advance = self.advance()
            is_delayed |= advance.is_delayed
            if advance.saved is not None:
                return Advance(advance.saved, is_delayed)
            time.sleep(_POLL_INTERVAL_S)
        return Advance()

    def close(self) -> None:
        """Let go of a checkpoint under way; it stays torn."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _persist(self, work: Callable[[], T]) -> T:
        """Do something with the storage until it succeeds."""
        start, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                self._fence.check()
                return work()
            except SupersededError:
                raise
            # storages raise errors of their own beside OSError; whichever it was, it is told
            except Exception as error:
                waited_s = time.monotonic() - start
                if self._closed.is_set() or waited_s + pause_s > self._timeout_s:
                    raise StorageError(f"a checkpoint could not be written in {waited_s:.0f} s: {error}") from error
                _logger.warning("a checkpoint's part is tried again in %.1f s: %s", pause_s, error)
                self._has_failed.set()
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def prune(url: str, attempt: int, num_kept: int) -> None:
    """Delete what is older than the newest whole checkpoints, of this attempt and earlier ones.

    A later attempt's are left alone: this one may be an orphan.
    """
    filesystem, root = url_to_fs(url)
    filesystem.invalidate_cache(root)
    steps: dict[str, int] = {}
    for folder in filesystem.ls(root, detail=False):
        number = folder.rstrip("/").rpartition("attempt-")[2]
        if number.isdigit() and int(number) <= attempt:
            paths = (path.rstrip("/") for path in filesystem.ls(folder, detail=False))
            steps |= {path: int(path.rpartition("/")[2].partition("-")[0]) for path in paths}
    newest_first = sorted(steps, key=lambda path: steps[path], reverse=True)
    whole = [path for path in newest_first if read_manifest(filesystem.unstrip_protocol(path)) is not None]
    for path in newest_first:
        if steps[path] < steps[whole[:num_kept][-1]]:
            filesystem.rm(path, recursive=True)
