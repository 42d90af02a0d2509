"""The run directory: all that a job leaves behind, on any filesystem that fsspec knows.

    <root>/<job id>/spec.json            the JobSpec
                    attempts/            says which attempts and workers were started (`ray_jobs.fence`)
                    events/*.jsonl       immutable numbered segments (`service.spec.event`)
                    checkpoints/         Ray Train's storage, a folder an attempt
                    evals/*.json         held-out loss, samples and routing, before, during and after
                    evals/*.npz          the base model's routing
                    evaluation/<when>/   benchmarks: every sample, and a summary a task
                    exports/<try>/       a Hugging Face checkpoint
                    exports/<try>.json   says that it is whole and verified; none is before
                    tensorboard/         TensorBoard's event files; likewise wandb/, when asked for
                    report.json          the outcome
    <root>/<sweep id>/spec.json          the SweepSpec
                      events/*.jsonl     likewise
                      trials/<trial>/    a run directory each, without exports; `trial.json` says that it has ended
                      sweep.json         what was found so far
    <root>/prepared/<hash>/              prepared data, shared by all jobs of this root

Files appear whole or not at all: written beside their place, then moved; on object stores a put is atomic by itself.

Two attempts can overlap for a while, so nothing that one has written is overwritten by an earlier one. Checkpoints and
exports have folders of their own, and of the exports the highest attempt's counts. Evaluations need no such rule: all
attempts would write the same.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import SupersededError
from service.spec.event import (
    EVENTS_DIRECTORY,
    REPORT_FILE,
    SPEC_FILE,
    Event,
    EventType,
    segment_name,
)
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec

if TYPE_CHECKING:
    from ray_jobs.fence import Fence

CHECKPOINTS_DIRECTORY = "checkpoints"

_logger = logging.getLogger(__name__)


def write_file(url: str, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    filesystem, path = url_to_fs(url)
    filesystem.makedirs(os.path.dirname(path), exist_ok=True)
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, content)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.part"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class RunDirectory:
    """Paths of one job's run directory.

    Args:
        url: the directory, as an absolute path or a URL that fsspec knows; seen by all nodes and the control plane.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @property
    def job_id(self) -> str:
        """The last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def prepared_url(self) -> str:
        """Where prepared data lies, shared by all jobs of the same root."""
        return self.url.rpartition("/")[0] + "/prepared"

    def join(self, *parts: str) -> str:
        """URL of a file or folder of this run."""
        return "/".join((self.url, *parts))

    def read_spec(self) -> JobSpec:
        """The job's spec, as the control plane stored it."""
        return JobSpec.model_validate_json(self._read_spec())

    def read_sweep_spec(self) -> SweepSpec:
        """The spec, where the run is a sweep's."""
        return SweepSpec.model_validate_json(self._read_spec())

    def _read_spec(self) -> bytes:
        with fsspec.open(self.join(SPEC_FILE), "rb") as file:
            content: bytes = file.read()
        return content

    def write_json(self, name: str, document: dict[str, Any]) -> str:
        """Write a document; returns its URL."""
        write_file(self.join(name), json.dumps(document, indent=2, allow_nan=False).encode())
        return self.join(name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a document, or None where there is none."""
        content = self.read_bytes(name)
        document: dict[str, Any] | None = None if content is None else json.loads(content)
        return document

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file, or None where there is none."""
        filesystem, path = url_to_fs(self.join(name))
        content: bytes | None = filesystem.cat_file(path) if filesystem.exists(path) else None
        return content

    def write_report(self, report: dict[str, Any]) -> str:
        """Write the job's outcome; returns its URL."""
        return self.write_json(REPORT_FILE, report)


class EventWriter:
    """Writes a process's events, in segments of at most `flush_interval_s` seconds.

    One writer per process; safe to use from several threads. Close it, or use it as a context manager: the last segment
    is written then. Events that could not be written stay queued for the next time.

    Args:
        run: the run directory.
        writer: name of the writing process, such as `driver` or `trainer`; made unique with a random suffix.
        attempt: the job's attempt.
        flush_interval_s: how long an event may wait for its segment, in seconds.
        alive_interval_s: seconds without an event after which the writer says `job.alive`; by default it does not.
        fence: looked at before each segment; a writer that another has replaced writes none, and raises.
    """

    def __init__(
        self,
        run: RunDirectory,
        writer: str,
        attempt: int,
        flush_interval_s: float = 0.5,
        alive_interval_s: float = math.inf,
        *,
        fence: Fence | None = None,
    ) -> None:
        self._run = run
        self._writer = f"a{attempt}-{writer}-{uuid.uuid4().hex[:8]}"
        self._attempt = attempt
        self._pending: list[Event] = []
        self._next_segment = 0
        self._fence = fence
        self._superseded: SupersededError | None = None
        self._alive_interval_s, self._written_at = alive_interval_s, time.monotonic()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._flush_regularly, args=(flush_interval_s,), daemon=True)
        self._thread.start()

    def emit(self, type: EventType, *, stage: str | None = None, message: str = "", **data: Any) -> None:
        """Queue an event; `data` as `service.spec.event.Event` lists it for the type.

        Raises:
            SupersededError: another has replaced this process.
        """
        if self._superseded is not None:
            raise self._superseded
        event = Event(type=type, stage=stage, attempt=self._attempt, message=message, data=data)
        with self._lock:
            self._pending.append(event)

    def flush(self) -> None:
        """Write what is queued.

        Raises:
            SupersededError: another has replaced this process.
            OSError: the run directory does not take it.
        """
        with self._lock:
            if not self._pending:
                return
            time_ns = time.time_ns()  # before the look: what is written late then sorts before what the next one says
            if self._fence is not None:
                self._fence.check()
            name = segment_name(time_ns, self._writer, self._next_segment)
            content = b"".join(event.model_dump_json().encode() + b"\n" for event in self._pending)
            write_file(self._run.join(EVENTS_DIRECTORY, name), content)
            self._pending.clear()
            self._next_segment += 1
            self._written_at = time.monotonic()

    def close(self) -> None:
        """Write what is queued and stop.

        Raises:
            SupersededError: another has replaced this process.
            OSError: the run directory does not take it.
        """
        self._closed.set()
        self._thread.join()
        self.flush()

    def _flush_regularly(self, interval_s: float) -> None:
        while not self._closed.wait(interval_s):
            if not self._pending and time.monotonic() - self._written_at >= self._alive_interval_s:
                self.emit("job.alive")
            try:
                self.flush()
            except SupersededError as error:
                self._superseded = error  # raised where the process next has something to say
                return
            except OSError as error:
                _logger.warning("%d events wait for the next try: %s", len(self._pending), error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def local_directory(url: str, names: Collection[str] | None = None) -> Iterator[Path]:
    """A directory as local files: the directory itself where it is local, else a copy that lives for the block.

    Args:
        url: of the directory.
        names: files to copy; by default all.
    """
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if names is None:
            filesystem.get(path.rstrip("/") + "/", scratch + "/", recursive=True)
        for name in names or ():
            filesystem.get_file(f"{path}/{name}", f"{scratch}/{name}")
        yield Path(scratch)
