"""Which architecture a job's model has, and where its weights come from.

A base checkpoint is read from the nodes' own filesystems, by ranges of its files, so that each worker takes its own
experts only. Fetching it from a URL would bring all of its 960 GB to every node; mount the bucket instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from moe.config import PRESETS, MoEConfig
from moe.hf import load_checkpoint, read_config
from moe.init import initialize
from moe.model import HybridModel
from service.errors import CheckpointError, InvalidSpecError, SourceNotFoundError
from service.spec.job import JobSpec
from service.spec.model import CheckpointBase, PresetBase

_BASE_FIELD = "model.base"


def model_config(spec: JobSpec, vocab_size: int) -> MoEConfig:
    """The preset with the tokenizer's vocabulary, or the checkpoint's own configuration.

    Args:
        spec: the job's.
        vocab_size: of the tokenizer.

    Raises:
        SourceNotFoundError: the checkpoint has no `config.json`.
        CheckpointError: it describes what cannot be trained here.
        InvalidSpecError: the checkpoint is no directory of the nodes' own, the tokenizer has more pieces than
            it, the rows are longer than its positions, or the experts cannot be divided.
    """
    base = spec.model.base
    if isinstance(base, PresetBase):
        preset = PRESETS[base.name]
        return replace(
            preset, vocab_size=vocab_size, max_positions=max(preset.max_positions, spec.data.sequence_length)
        )
    directory = _directory(base)
    with _named_errors():
        config = read_config(directory)
    if vocab_size > config.vocab_size:
        raise InvalidSpecError(
            f"has {vocab_size} pieces, the checkpoint only {config.vocab_size} embeddings", "model.tokenizer"
        )
    if spec.data.sequence_length > config.max_positions:
        raise InvalidSpecError(f"exceeds the checkpoint's {config.max_positions} positions", "data.sequence_length")
    if config.num_experts % spec.parallel.expert_parallel_size:
        raise InvalidSpecError(
            f"does not divide the checkpoint's {config.num_experts} experts", "parallel.expert_parallel_size"
        )
    return config


def load_base(model: HybridModel, spec: JobSpec) -> None:
    """Fill in the weights that the job starts from: the checkpoint's, or random ones in a preset's case.

    Raises:
        SourceNotFoundError: a file of the checkpoint is missing.
        CheckpointError: a tensor is missing, unknown, of another shape or not finite, or a file is cut short.
    """
    if isinstance(spec.model.base, PresetBase):
        initialize(model, spec.seed)
        return
    directory = _directory(spec.model.base)
    with _named_errors():
        load_checkpoint(model, directory)


def _directory(base: CheckpointBase) -> Path:
    if get_protocol(base.path) not in ("file", "local"):
        raise InvalidSpecError(
            f"{base.path} is not in a filesystem of the nodes: mount or copy it and give its path", _BASE_FIELD
        )
    return Path(url_to_fs(base.path)[1])


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn what `moe.hf` raises into errors that name the spec's field."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(str(error), _BASE_FIELD) from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(str(error), _BASE_FIELD) from error
