"""What can be known before a job is accepted: that the files it names exist.

Only where the cluster sees the same files as the control plane; elsewhere the job's first stage finds out.
"""

from __future__ import annotations

from fsspec.core import url_to_fs

from service.backends.base import Backend
from service.errors import SourceNotFoundError
from service.spec.job import JobSpec
from service.spec.model import CheckpointBase, PretrainedTokenizer
from service.spec.source import SourceSpec


def require_reachable(spec: JobSpec, backend: Backend) -> None:
    """Look for every local file of a spec.

    Raises:
        SourceNotFoundError: with the field's path.
    """
    if not backend.shares_filesystem:
        return
    for index, source in enumerate(spec.data.sources):
        if isinstance(source, SourceSpec):
            _require_file(source.uri, f"data.sources.{index}.uri")
    for index, benchmark in enumerate(spec.data.decontaminate.against if spec.data.decontaminate else ()):
        _require_file(benchmark.uri, f"data.decontaminate.against.{index}.uri")
    if isinstance(spec.model.base, CheckpointBase):
        _require_file(f"{spec.model.base.path}/config.json", "model.base.path")
    if isinstance(spec.model.tokenizer, PretrainedTokenizer):
        _require_file(f"{spec.model.tokenizer.path}/tokenizer.json", "model.tokenizer.path")


def _require_file(url: str, field: str) -> None:
    if not url.startswith(("file://", "/")):
        return
    filesystem, path = url_to_fs(url)
    if not filesystem.isfile(path) and not any(filesystem.isfile(match) for match in filesystem.glob(path)):
        raise SourceNotFoundError(f"no such file: {path}", field)
