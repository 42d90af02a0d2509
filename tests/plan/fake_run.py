"""The real training step on tensors without content, in a process group of any size that is not there, and counted.

    fake_run.py SPEC.json… [--layers N]

Prints JSON, a line for each job, all of equally many processes: bytes by part, the peak, and every collective. It runs
what a job runs: `HybridModel`, DeepSpeed's ZeRO-2 engine as `build_engine` makes it, and `take_step`. What is not there
is replaced where the code asks for it:

- values. A tensor of PyTorch's `FakeTensorMode` has a shape and no content, so what the host reads is stated instead:
  an even spread of the copies over the experts, all tokens trained, no gradient that is not finite, otherwise 1.
- the GPU. Fake tensors lie on the CPU, since those of a GPU have no backward pass where PyTorch was built without CUDA;
  so the two choices of `moe` for GPUs, `grouped_swiglu` and `varlen_attention`, are made for them, and ZeRO's second
  bucket, which `torch.cuda` decides on.
- the other processes. The backend `fake` answers every collective at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import moe.attention
import moe.dispatch
import moe.experts
from moe.attention import Documents
from moe.config import PRESETS
from moe.dispatch import ExpertParallel
from moe.exchange import Exchange
from moe.freeze import freeze
from moe.model import HybridModel, PackedBatch
from ray_jobs.train import engine as engine_module
from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.checkpoint import MOMENTS
from ray_jobs.train.engine import TrainingStep, balancing, build_engine, expert_parallel_group
from ray_jobs.train.step import take_step
from service.spec.job import JobSpec

aten = torch.ops.aten


@dataclass
class Counted:
    """What a step took.

    Attributes:
        bytes: of this process, by part; activations are those that the first forward pass keeps.
        peak_bytes: most that were alive at once, and the optimiser's moments, which the first step makes at its end.
        collectives: in order: kind, bytes of this process's input, ranks of the group.
    """

    bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    collectives: list[tuple[str, int, list[int]]] = field(default_factory=list)


class Counting(TorchDispatchMode):
    """Counts storages that are alive, and collectives; states what no tensor holds.

    Args:
        num_trained: targets of the loss in a micro-batch.
    """

    def __init__(self, num_trained: int) -> None:
        super().__init__()
        self._num_trained = num_trained
        self._alive: dict[int, weakref.ref[Any]] = {}
        self.alive_bytes = self.peak_bytes = 0
        self.collectives: list[tuple[str, int, list[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._stated(func, args, kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._note(tensor)
        return result

    def _stated(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten._local_scalar_dense.default:
            return 0 if args[0].dtype in (torch.bool, torch.uint8) else 1  # flags of what is not finite
        if func in (aten.uniform_.default, aten.normal_.default):
            return args[0]
        if func is aten.nonzero.default:
            return args[0].new_empty((self._num_trained, args[0].ndim), dtype=torch.int64)
        if func is aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1]):
            return args[0].new_empty(self._num_trained)
        if func is aten.bincount.default:
            return args[0].new_empty(args[2])
        if func.namespace == "c10d":
            self._note_collective(func, args)
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive and self._alive[key]() is not None:
            return

        def forget(_: object) -> None:
            del self._alive[key]
            self.alive_bytes -= size

        self._alive[key] = weakref.ref(storage, forget)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def _note_collective(self, func: Any, args: Any) -> None:
        groups = [arg for arg in args if isinstance(arg, torch.ScriptObject)]
        name = func.overloadpacket.__name__.strip("_").removesuffix("_base")
        tensors = args[1] if name in ("alltoall", "allgather") else args[0]
        num_bytes = sum(tensor.nbytes for tensor in tree_iter(tensors) if isinstance(tensor, Tensor))
        group = dist.ProcessGroup.unbox(groups[0])
        self.collectives.append((name, num_bytes, dist.get_process_group_ranks(group)))


def _announce_evenly(counts_E: Tensor, num_copies: int, parallel: ExpertParallel) -> tuple[Tensor, Exchange]:
    """`moe.dispatch._announce`, as if every process sent equally many copies to every other."""
    assert parallel.group is not None, "there is nothing to announce"
    counts_RL = torch.empty_like(counts_E)
    dist.all_to_all_single(counts_RL, counts_E, group=parallel.group)
    share = [num_copies // parallel.size] * parallel.size
    return counts_RL.view(parallel.size, -1), Exchange(parallel.group, share, share)


def _always(_q_THK: Tensor) -> bool:
    """Unlike a mock, keeps none of the tensors that it is asked about."""
    return True


def _with_second_bucket(config: Any) -> Any:
    def overlapping(spec: JobSpec, num_workers: int) -> dict[str, Any]:
        document: dict[str, Any] = config(spec, num_workers)
        document["zero_optimization"]["overlap_comm"] = True
        return document

    return overlapping


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Make the choices that the code makes for GPUs."""
    with (
        mock.patch.object(moe.dispatch, "_announce", _announce_evenly),
        mock.patch.object(moe.experts, "block_swiglu", moe.experts.grouped_swiglu),
        mock.patch.object(moe.attention, "_has_varlen_kernel", _always),
        mock.patch.object(engine_module, "deepspeed_config", _with_second_bucket(engine_module.deepspeed_config)),
    ):
        yield


def full_batch(num_rows: int, length: int) -> TrainBatch:
    """Rows of one document each."""
    tokens_T = torch.empty(num_rows * length, dtype=torch.int64)
    documents = Documents.from_lengths([length] * num_rows)
    return TrainBatch(
        PackedBatch(tokens_T, documents, (length,) * num_rows), torch.empty_like(tokens_T, dtype=torch.bool), tokens_T
    )


def count(spec: JobSpec, num_layers: int | None = None) -> Counted:
    """Take a step of a job, and count.

    It is taken as the last process, which owns the gradients that come first, and so needs the most memory. The process
    group is there.

    Args:
        spec: of a preset; its vocabulary is taken as it is.
        num_layers: instead of the preset's.
    """
    preset = PRESETS[spec.model.base.name]  # type: ignore[union-attr]
    config = replace(preset, num_layers=num_layers or preset.num_layers)
    length = spec.data.sequence_length
    micro_batch, num_processes = spec.train.micro_batch_rows, spec.parallel.num_workers
    counted = Counted()
    with as_on_gpus(), FakeTensorMode(), Counting(micro_batch * length) as counting:
        parallel = expert_parallel_group(spec.parallel.expert_parallel_size)
        model = HybridModel(
            config, parallel, balancing(spec), activation_checkpointing=spec.train.activation_checkpointing
        )
        freeze(model, spec.train.tuning)
        step = TrainingStep(model, spec.train.balance_loss_coefficient, 1)
        step.to = lambda *_args, **_kwargs: step  # type: ignore[assignment]  # is there already; fake weights do not move
        engine = build_engine(step, spec)
        batch = full_batch(micro_batch, length)
        num_batches = spec.train.global_batch_rows // (num_processes * micro_batch)
        take, go_back = engine.optimizer.step, engine.backward

        def note_gradients() -> None:
            groups = engine.optimizer.averaged_gradients.values()
            counted.bytes["gradients"] = sum(gradient.nbytes for group in groups for gradient in group)
            counted.peak_bytes = counting.peak_bytes
            take()

        def note_activations(loss: Tensor, **options: Any) -> None:
            counted.bytes.setdefault("activations", counting.alive_bytes - alive_bytes)
            go_back(loss, **options)

        engine.optimizer.step, engine.backward = note_gradients, note_activations
        counting.collectives, counting.peak_bytes = counted.collectives, counting.alive_bytes
        alive_bytes = counting.alive_bytes
        take_step(engine, [batch] * num_batches, 1e-5, 1)
        states = engine.optimizer.optimizer.state.values()
        moments = sum(state[kind].nbytes for state in states for kind in MOMENTS)
        masters = sum(partition.nbytes for partition in engine.optimizer.single_partition_of_fp32_groups)
        counted.bytes |= {
            "weights": sum(weight.nbytes for weight in model.parameters()),
            "optimiser": moments + masters,
        }
        counted.peak_bytes += moments
    return counted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path, nargs="+")
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    specs = [JobSpec.model_validate_json(path.read_text()) for path in options.spec]
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    [num_processes] = {spec.parallel.num_workers for spec in specs}
    dist.init_process_group("fake", store=FakeStore(), rank=num_processes - 1, world_size=num_processes)
    for spec in specs:
        sys.stdout.write(json.dumps(asdict(count(spec, options.layers))) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
