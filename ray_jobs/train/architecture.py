"""Which architecture a job's model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe.config import PRESETS, MoEConfig
from moe.hf import read_config
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.model import PresetBase


def model_config(spec: JobSpec, vocab_size: int) -> MoEConfig:
    """The preset with the tokenizer's vocabulary, or the checkpoint's own configuration.

    Args:
        spec: the job's.
        vocab_size: of the tokenizer.

    Raises:
        InvalidSpecError: the tokenizer has more pieces than the checkpoint, the rows are longer than its positions, or
            the experts cannot be divided.
    """
    base = spec.model.base
    if isinstance(base, PresetBase):
        preset = PRESETS[base.name]
        return replace(
            preset, vocab_size=vocab_size, max_positions=max(preset.max_positions, spec.data.sequence_length)
        )
    config = read_config(Path(base.path))
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
