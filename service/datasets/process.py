"""Reading what users uploaded, in a process of its own: `python -m service.datasets.process`.

A task comes as JSON on stdin, its answer goes to stdout; the argument is the address space that the process may have.
A file that makes a decoder allocate without end, or crashes a parser, costs this process alone.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from service.errors import InvalidDatasetError, SleddogError, StorageError
from service.spec.dataset import DatasetReading, PreviewRequest
from service.spec.source import FileFormat

_POLL_S = 1.0
_KNOWN_ERRORS: dict[str, type[SleddogError]] = {error.code: error for error in (InvalidDatasetError, StorageError)}


class VerifyTask(BaseModel):
    """Put a dataset together, and measure it. Answers `{"decompressed_bytes": …}`."""

    kind: Literal["verify"] = "verify"
    part_urls: list[str]
    url: str
    format: FileFormat
    sha256: str
    max_decompressed_bytes: int


class ScanTask(BaseModel):
    """Look at every row. Answers `{"validation": …, "statistics": …}`."""

    kind: Literal["scan"] = "scan"
    url: str
    format: FileFormat
    reading: DatasetReading


class PreviewTask(BaseModel):
    """Look at some rows. Answers a `Preview`."""

    kind: Literal["preview"] = "preview"
    url: str
    format: FileFormat
    request: PreviewRequest


Task = Annotated[VerifyTask | ScanTask | PreviewTask, Field(discriminator="kind")]


def run_task(
    task: Task, *, memory_bytes: int, timeout_s: float, on_wait: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Run a task to its end.

    Args:
        task: what to do.
        memory_bytes: address space of the process.
        timeout_s: before it is killed.
        on_wait: called every second; False ends the process.

    Raises:
        InvalidDatasetError: the dataset is not as it should be, or cannot be read within the limits.
        StorageError: the storage did not answer; another try may help.
        InterruptedError: `on_wait` has ended it.
        SleddogError: anything else that went wrong in it.
    """
    command = [sys.executable, "-m", "service.datasets.process", str(memory_bytes)]
    with subprocess.Popen(  # noqa: S603  our own command line
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            content = task.model_dump_json().encode()
            answer, log = _communicate(process, content, timeout_s, on_wait)
        finally:
            process.kill()
    return _read_answer(process.returncode, answer, log)


def _communicate(
    process: subprocess.Popen[bytes], content: bytes, timeout_s: float, on_wait: Callable[[], bool]
) -> tuple[bytes, bytes]:
    waited_s = 0.0
    task: bytes | None = content
    while True:
        try:
            return process.communicate(task, timeout=min(_POLL_S, timeout_s))
        except subprocess.TimeoutExpired:
            task, waited_s = None, waited_s + _POLL_S
        if waited_s >= timeout_s:
            raise InvalidDatasetError(f"reading the file takes more than {timeout_s:g} s")
        if not on_wait():
            raise InterruptedError


def _read_answer(returncode: int, answer: bytes, log: bytes) -> dict[str, Any]:
    if returncode:
        last = log.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {returncode}"]
        raise InvalidDatasetError(f"the process that reads the file ended: {last[0][:300]}")
    document: dict[str, Any] = json.loads(answer)
    if (error := document.get("error")) is None:
        return document
    raise _KNOWN_ERRORS.get(error["code"], SleddogError)(error["message"], error["field"])


def perform(task: Task) -> dict[str, Any]:
    """Do a task, here."""
    from service.datasets.assemble import assemble, measure
    from service.datasets.scan import dataset_rows, preview, scan

    if isinstance(task, VerifyTask):
        if task.part_urls:
            assemble(task.part_urls, task.url, task.sha256)
        return {"decompressed_bytes": measure(task.url, task.format, task.max_decompressed_bytes)}
    if isinstance(task, ScanTask):
        validation, statistics = scan(dataset_rows(task.url, task.format, task.reading))
        return {"validation": validation.model_dump(), "statistics": statistics.model_dump()}
    return preview(dataset_rows(task.url, task.format, task.request), task.request).model_dump()


def main() -> None:
    """Read a task, do it, write the answer or the expected error."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    task: Task = TypeAdapter(Task).validate_json(sys.stdin.buffer.read())
    try:
        answer = perform(task)
    except SleddogError as error:
        answer = _error(error)
    except OSError as error:
        answer = _error(StorageError(f"the storage did not answer: {error}"))
    sys.stdout.write(json.dumps(answer))


def _error(error: SleddogError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "field": error.field}}


if __name__ == "__main__":
    main()
