"""Who may still write: of all drivers and worker groups that were ever started in a run directory, the last ones alone.

A host that is cut off from the cluster lives on, and may still reach the storage. Ray gives it up and the driver starts
its workers elsewhere, in the same attempt; or Ray's head is gone, and the service starts the next attempt. A whole
worker group on such a host needs nobody, and would train on beside its replacement: each step would be told twice. So
each start leaves a marker before anything is started, and whoever writes looks for a newer one first.

    attempts/2      attempt 2 was started: drivers and workers of lower ones end
    attempts/2-3    its workers were started for the third time: earlier ones end

A look and the write behind it are two acts. What was being written while the marker appeared, one segment of events at
most, may still come, named as of before it; a checkpoint does no harm, since it has a directory of its own. And a look
sees what the filesystem shows: NFS may show a directory as it was up to a minute ago. A lease would not be more exact,
as storages do not refuse who has lost one, and would need a service and clocks that agree.
"""

from __future__ import annotations

import os
import re

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ray_jobs.run_directory import RunDirectory
from service.errors import SupersededError
from service.spec.event import ATTEMPTS_DIRECTORY

_MARKER = re.compile(r"(\d+)(?:-(\d+))?")


def claim_attempt(run: RunDirectory, attempt: int) -> bool:
    """Mark an attempt as started, once.

    Two drivers may be started for the same one: when a Ray head dies right after it took a submission, the next head
    knows nothing of it and takes it again, while the first driver lives on.

    Returns:
        False when it was marked before. Exact on local and network filesystems, and on object stores that know
        conditional writes.
    """
    return _mark(run, str(attempt))


def claim_start(run: RunDirectory, attempt: int) -> int:
    """Mark another start of an attempt's workers; the groups before it end themselves when they see that.

    Returns:
        Its number, from 1.

    Raises:
        SupersededError: a later attempt was started.
    """
    newest, number = _newest(run)
    if newest > attempt:
        raise _superseded(f"attempt {attempt}", newest, number)
    number = number + 1 if newest == attempt else 1
    while not _mark(run, f"{attempt}-{number}"):
        number += 1
    return number


class Fence:
    """Stands between a process and the run directory that it writes to.

    Args:
        run: the run directory.
        attempt: the process's.
        start: of its workers; None for the driver, which all starts of its attempt are its own.
    """

    def __init__(self, run: RunDirectory, attempt: int, start: int | None = None) -> None:
        self._run, self._attempt, self._start = run, attempt, start

    def check(self) -> None:
        """Look for a newer start; to be called before each write.

        Raises:
            SupersededError: there is one.
            OSError: the storage does not answer.
        """
        attempt, number = _newest(self._run)
        if attempt > self._attempt:
            raise _superseded(f"attempt {self._attempt}", attempt, number)
        if self._start is not None and (attempt, number) > (self._attempt, self._start):
            raise _superseded(f"start {self._start} of the workers of attempt {attempt}", attempt, number)


def _superseded(who: str, attempt: int, number: int) -> SupersededError:
    newer = f"attempt {attempt}" + (f", start {number} of its workers," if number else "")
    return SupersededError(f"{who} was given up, and {newer} has taken its place; this process writes nothing more")


def _newest(run: RunDirectory) -> tuple[int, int]:
    """The last attempt and the last start of its workers; zeros where there is none."""
    filesystem, root = url_to_fs(run.join(ATTEMPTS_DIRECTORY))
    filesystem.invalidate_cache(root)
    try:
        names = [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(root, detail=False)]
    except FileNotFoundError:
        return 0, 0
    found = [marker for name in names if (marker := _MARKER.fullmatch(name))]
    return max(((int(marker[1]), int(marker[2] or 0)) for marker in found), default=(0, 0))


def _mark(run: RunDirectory, name: str) -> bool:
    filesystem, path = url_to_fs(run.join(ATTEMPTS_DIRECTORY, name))
    filesystem.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        if isinstance(filesystem, LocalFileSystem):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        else:
            filesystem.pipe_file(path, b"", mode="create")
    except FileExistsError:
        return False
    return True
