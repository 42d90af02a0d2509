"""The spec of a fine-tuning job."""

from __future__ import annotations

from pydantic import Field, model_validator

from moe.config import PRESETS
from service.spec.base import SpecModel, conflict
from service.spec.data import DataSpec
from service.spec.evaluate import EvaluateSpec
from service.spec.model import ModelSpec, PresetBase
from service.spec.track import TrackSpec
from service.spec.train import ParallelSpec, TrainSpec


class JobSpec(SpecModel):
    """All that a user asks of one fine-tuning job: intent only, no hosts, no ranks, no secrets."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    """A label for people; need not be unique."""
    model: ModelSpec
    data: DataSpec
    train: TrainSpec = TrainSpec()
    parallel: ParallelSpec = ParallelSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    track: TrackSpec = TrackSpec()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the weights' initialisation, the held-out split and every shuffle."""

    @model_validator(mode="after")
    def _batch_divides(self) -> JobSpec:
        rows_at_once = self.parallel.num_workers * self.train.micro_batch_rows
        if self.train.global_batch_rows % rows_at_once:
            raise conflict(
                "train.global_batch_rows",
                f"is no multiple of `parallel.num_workers` x `train.micro_batch_rows` = {rows_at_once}",
            )
        if isinstance(self.model.base, PresetBase):
            num_experts = PRESETS[self.model.base.name].num_experts
            if num_experts % self.parallel.expert_parallel_size:
                raise conflict(
                    "parallel.expert_parallel_size",
                    f"does not divide the {num_experts} experts of preset {self.model.base.name!r}",
                )
        return self
