"""How a job's parameters and tokens are spread over its GPUs: what memory, communication and time all start from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from moe.config import PRESETS, MoEConfig
from moe.operations import TrainedParts
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.model import PresetBase, TrainedTokenizer
from service.spec.ownership import num_owned


def planned_config(spec: JobSpec) -> MoEConfig:
    """The architecture that a job trains.

    Args:
        spec: the job's. A preset keeps its own vocabulary unless the job trains a tokenizer.

    Raises:
        InvalidSpecError: the checkpoint's `config.json` cannot be read here, or is of no such architecture.
    """
    base = spec.model.base
    if isinstance(base, PresetBase):
        preset, tokenizer = PRESETS[base.name], spec.model.tokenizer
        if isinstance(tokenizer, TrainedTokenizer):
            return replace(preset, vocab_size=tokenizer.vocab_size)
        return preset
    try:
        document = json.loads((Path(base.path.removeprefix("file://")) / "config.json").read_bytes())
        config = MoEConfig.from_hf(document)
    except OSError as error:
        raise InvalidSpecError(
            f"{error.strerror}: config.json cannot be read here; plan with a preset of the same shape", "model.base"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidSpecError(str(error), "model.base") from error
    if config.num_experts % spec.parallel.expert_parallel_size:
        raise InvalidSpecError(
            f"does not divide the checkpoint's {config.num_experts} experts", "parallel.expert_parallel_size"
        )
    return config


@dataclass(frozen=True)
class Layout:
    """A job on its GPUs. Counts of parameters and tokens are those of one GPU.

    Attributes:
        spec: the job's.
        config: its architecture.
    """

    spec: JobSpec
    config: MoEConfig

    @classmethod
    def of(cls, spec: JobSpec) -> Layout:
        """The layout of a job; raises as `planned_config`."""
        return cls(spec, planned_config(spec))

    @property
    def num_gpus(self) -> int:
        """W, over which dense gradients and optimiser state are spread."""
        return self.spec.parallel.num_workers

    @property
    def num_expert_replicas(self) -> int:
        """GPUs that hold the same experts, over which their gradients and optimiser state are spread."""
        return self.num_gpus // self.spec.parallel.expert_parallel_size

    @property
    def num_dense(self) -> int:
        """Parameters outside the experts, the same on every GPU."""
        return self.config.num_dense_params() + self.config.num_router_params()

    @property
    def num_expert(self) -> int:
        """Parameters of the experts that a GPU holds."""
        config = self.config
        local = config.num_experts // self.spec.parallel.expert_parallel_size
        return config.num_layers * local * config.num_expert_params

    @property
    def num_dense_trained(self) -> int:
        """Of `num_dense`, those that are trained."""
        tuning = self.spec.train.tuning
        return self.num_dense if tuning == "full" else self.config.num_trained_params(tuning)

    @property
    def num_expert_trained(self) -> int:
        """Of `num_expert`, those that are trained."""
        return self.num_expert if self.spec.train.tuning == "full" else 0

    @property
    def num_layers_passed(self) -> int:
        """Layers that gradients go through: all but the first in router-only tuning, where nothing lies below it."""
        return self.config.num_layers - (self.spec.train.tuning == "router_only")

    @property
    def num_owned(self) -> int:
        """Trained parameters whose gradient and optimiser state a GPU owns, under ZeRO-2."""
        return num_owned(
            self.num_dense_trained, self.num_expert_trained, self.num_gpus, self.spec.parallel.expert_parallel_size
        )

    @property
    def trained_parts(self) -> TrainedParts:
        """Which weights are trained."""
        return TrainedParts.of(self.spec.train.tuning)

    @property
    def number_bytes(self) -> int:
        """Of a number of the forward and backward pass."""
        return 2 if self.spec.train.precision == "bf16" else 4

    @property
    def num_micro_batches(self) -> int:
        """Of a step, on each GPU."""
        return self.spec.train.global_batch_rows // (self.num_gpus * self.spec.train.micro_batch_rows)

    @property
    def num_tokens(self) -> int:
        """T, of a micro-batch."""
        return self.spec.train.micro_batch_rows * self.spec.data.sequence_length
