"""What one training worker does: build the model, resume, train, evaluate, export.

Evaluation and export run in the same processes as the training, because only there do all experts of a model that fits
no single machine exist at once. Each part notices when an earlier start has already done it: training by the newest
checkpoint, an evaluation by its files, the export by the file that commits it. A run directory holds one job, so what
was done for the same step is the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from moe.freeze import freeze
from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRows
from ray_jobs.evaluate.held_out import measure_held_out
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.router_health import write_router_health
from ray_jobs.evaluate.run import evaluate_tasks
from ray_jobs.evaluate.samples import answer
from ray_jobs.fence import Fence
from ray_jobs.run_directory import CHECKPOINTS_DIRECTORY, EventWriter, RunDirectory, local_directory
from ray_jobs.track.tracked_events import TrackedEventWriter
from ray_jobs.train.architecture import load_base, model_config
from ray_jobs.train.batches import RowOrder, TrainBatch, collate, share_of_worker
from ray_jobs.train.checkpoint import TrainingState
from ray_jobs.train.checkpoint_writer import Advance, CheckpointWriter
from ray_jobs.train.clock import StepClock
from ray_jobs.train.cursor import check_cursor, data_cursor
from ray_jobs.train.engine import TrainingStep, balancing, build_engine, expert_parallel_group
from ray_jobs.train.export import committed_step, export
from ray_jobs.train.guards import Guards, require_measured, require_progress
from ray_jobs.train.proofs import Proof, prove, prove_step_count, require
from ray_jobs.train.resume import Resumed, resume
from ray_jobs.train.schedule import learning_rate
from ray_jobs.train.step import TakenStep, take_step
from ray_jobs.train.utilisation import frozen_bytes, worker_peak_flops
from service.spec.event import EventType, Stage, WarningKind
from service.spec.job import JobSpec

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

HELD_OUT_FILE = "evals/{when}-held-out.json"
SAMPLES_FILE = "evals/{when}-samples.json"


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver tells its workers; all of it plain values.

    Attributes:
        run_url: the run directory.
        attempt: of the job.
        packed_url: packed rows, with `train/` and `held_out/`.
        tokenizer_url: the tokenizer's directory.
        categories: names, in the order of their indices.
        is_trial: whether the run is a sweep's: it is not evaluated before training, and nothing is exported.
        rungs: further steps to evaluate at, where a sweep compares its trials.
        start: of the workers in this attempt, from 1.
    """

    run_url: str
    attempt: int
    packed_url: str
    tokenizer_url: str
    categories: tuple[str, ...]
    is_trial: bool = False
    rungs: tuple[int, ...] = ()
    start: int = 1


def run_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry into a worker.

    Args:
        config: a `WorkerConfig` as a dictionary.
    """
    settings = WorkerConfig(**config)
    run = RunDirectory(settings.run_url)
    spec = run.read_spec()
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, int(spec.parallel.cpus_per_worker)))
    fence = Fence(run, settings.attempt, settings.start)
    with (
        TrackedEventWriter(run, f"worker{dist.get_rank()}", settings.attempt, spec, fence) as events,
        local_directory(settings.tokenizer_url) as tokenizer_directory,
    ):
        Worker(settings, run, spec, events, tokenizer_directory, fence=fence).work()


class Worker:
    """One training process.

    Args:
        settings: from the driver.
        run: the run directory.
        spec: the job's.
        events: this worker's; only rank 0 writes any.
        tokenizer_directory: local copy of the tokenizer.
        fence: looked at before a checkpoint or an export is committed.
    """

    def __init__(
        self,
        settings: WorkerConfig,
        run: RunDirectory,
        spec: JobSpec,
        events: EventWriter,
        tokenizer_directory: Path,
        *,
        fence: Fence,
    ) -> None:
        self.settings, self.run, self.spec, self._events, self._fence = settings, run, spec, events, fence
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        self.tokenizer_directory = tokenizer_directory
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_directory)
        self.rows = PackedRows(f"{settings.packed_url}/train")
        self.held_out = PackedRows(f"{settings.packed_url}/held_out")
        self.total_steps = spec.train.num_steps(len(self.rows))
        self.order = RowOrder(len(self.rows), spec.train.epochs, spec.train.global_batch_rows, spec.seed)
        self.device = ray.train.torch.get_device()
        self.engine = self._build_engine()
        self._peak_flops: float | None = None

    @property
    def step_module(self) -> TrainingStep:
        """The model and its loss."""
        module: TrainingStep = self.engine.module
        return module

    def work(self) -> None:
        """Do what is left of the job."""
        resumed, last = resume(self.engine, self.run.join(CHECKPOINTS_DIRECTORY)), self.total_steps
        start = resumed.state.step
        self._announce_workers(start)
        for url in resumed.damaged:
            self._warn("checkpoint_damaged", f"{url} is not what was written, and was passed over")
        with self._finishing("train", reused=start == last):
            if start < last and self.spec.train.proofs:
                self._settle(start, self._prove(resumed))
            elif resumed.cursor is not None:
                check_cursor(resumed.cursor, self.order, start)
            if start == 0 and not self.settings.is_trial and not self._agree(lambda: self._is_evaluated("before", 0)):
                self.evaluate("before", 0)
            self.train(resumed.state)
            if start == last:
                self._prove_step_count(resumed.state)
        evaluated = self._agree(lambda: self._is_evaluated("after", last))
        self._emit("stage.started", "evaluate")
        with self._finishing("evaluate", reused=evaluated):
            if not evaluated:
                self.evaluate("after", last)
        if self.settings.is_trial:
            return
        exported = self._agree(lambda: committed_step(self.run) == last)
        self._emit("stage.started", "export")
        with self._finishing("export", reused=exported):
            if not exported:
                model, attempt = self.step_module.model, self.settings.attempt
                export(model, self.tokenizer_directory, self.run, attempt, last, fence=self._fence)

    def _build_engine(self) -> DeepSpeedEngine:
        parallel = expert_parallel_group(self.spec.parallel.expert_parallel_size)
        with torch.device(self.device):
            model = HybridModel(
                model_config(self.spec, len(self.tokenizer)),
                parallel,
                balancing(self.spec),
                activation_checkpointing=self.spec.train.activation_checkpointing,
            )
        load_base(model, self.spec)
        freeze(model, self.spec.train.tuning)
        coefficient = self.spec.train.balance_loss_coefficient
        return build_engine(TrainingStep(model, coefficient, len(self.settings.categories)), self.spec)

    def _announce_workers(self, start_step: int) -> None:
        mine = {"rank": self.rank, "pid": os.getpid(), "node_id": ray.get_runtime_context().get_node_id()}
        mine["peak_flops"] = worker_peak_flops(self.device, self.spec.train)
        workers: list[dict[str, Any]] = [{}] * self.num_workers
        dist.all_gather_object(workers, mine)
        peaks = [worker["peak_flops"] for worker in workers]
        self._peak_flops = None if None in peaks else sum(peaks)
        self._emit(
            "train.started",
            "train",
            start_step=start_step,
            total_steps=self.total_steps,
            workers=workers,
            frozen_bytes=frozen_bytes(self.step_module.model, self.num_workers),
        )
        self._flush()

    def train(self, state: TrainingState) -> None:
        """Take the optimiser steps that are left, with a checkpoint now and then."""
        settings = self.spec.train
        url = self.run.join(CHECKPOINTS_DIRECTORY)
        kept, timeout_s = settings.keep_checkpoints, settings.checkpoint_timeout_s
        writer = CheckpointWriter(self.engine, url, self.settings.attempt, kept, timeout_s, fence=self._fence)
        with closing(writer):
            for after in self._take_steps(state):
                self._tell(writer.advance())
                is_last = after.step == self.total_steps
                if is_last:
                    self._prove_step_count(after)
                    self._tell(writer.finish())
                if is_last or after.step % settings.checkpoint_every_steps == 0:
                    self._flush()
                    if not writer.begin(after, data_cursor(self.order, after.step)):
                        message = f"step {after.step}: the last checkpoint is still being written"
                        self._warn("checkpoint_left_out", message)
                self._evaluate_if_due(after.step)
            self._tell(writer.finish())

    def _take_steps(self, state: TrainingState) -> Iterator[TrainingState]:
        """One optimiser step after the other, and the state after each; the next one's rows are read meanwhile."""
        clock = StepClock(self.total_steps, self._peak_flops)
        guards = Guards(self.step_module.model.config.top_k)
        with ThreadPoolExecutor(1, "rows") as reader:
            batches = reader.submit(self._micro_batches, state.step)
            for step in range(state.step, self.total_steps):
                clock.resume()
                mine = batches.result()
                data_wait_s = clock.elapsed_s()
                if step + 1 < self.total_steps:
                    batches = reader.submit(self._micro_batches, step + 1)
                taken, metrics = self._take_step(step, mine)
                clock.tick()
                metrics |= clock.describe(step + 1, taken.num_tokens, taken.operations.done)
                self._emit("train.step", "train", **metrics, data_wait_s=data_wait_s)
                state = state.after(skipped=taken.is_skipped)
                self._guard(guards, state, taken)
                yield state

    def _prove(self, resumed: Resumed) -> list[Proof]:
        return prove(
            self.step_module,
            self.rows,
            self.order,
            resumed.state.step,
            categories=self.settings.categories,
            spec=self.spec.train,
            saved_cursor=resumed.cursor,
        )

    def _prove_step_count(self, state: TrainingState) -> None:
        skipped = state.step - state.updates
        self._settle(state.step, [prove_step_count(self.engine, self.total_steps, skipped)])

    def _settle(self, step: int, proofs: list[Proof]) -> None:
        self._emit("train.proofs", "train", step=step, proofs=[proof.describe() for proof in proofs])
        self._flush()
        require(proofs)

    def _take_step(self, step: int, batches: list[TrainBatch]) -> tuple[TakenStep, dict[str, Any]]:
        categories = self.settings.categories
        rate = learning_rate(step, self.total_steps, self.spec.train)
        taken = take_step(self.engine, batches, rate, len(categories))
        described = taken.describe(categories, self.spec.train.balance_loss_coefficient)
        return taken, {"epoch": self.order.epoch_of_step(step + 1), "learning_rate": rate, **described}

    def _guard(self, guards: Guards, state: TrainingState, taken: TakenStep) -> None:
        if taken.is_skipped:
            rows = [index for index in self.order.rows_of_step(state.step - 1) if index is not None]
            message = f"step {state.step}: a NaN or infinite gradient; the step was skipped; packed rows {rows}"
            self._warn("step_skipped", message)
            self._flush()
            require_progress(state, self.spec.train)
        for warning in guards.check(state.step, taken.sums.loss, taken.sums.copies_LE):
            self._warn(warning.kind, warning.message)

    def _tell(self, advance: Advance) -> None:
        if advance.is_delayed:
            self._warn("checkpoint_delayed", "the storage does not take a checkpoint; it is tried again")
        if advance.saved is not None:
            path, state = advance.saved
            self._emit("checkpoint.saved", "train", step=state.step, path=path)
            self._flush()

    def _micro_batches(self, step: int) -> list[TrainBatch]:
        mine = share_of_worker(self.order.rows_of_step(step), self.rank, self.num_workers)
        size = self.spec.train.micro_batch_rows
        rows = [None if index is None else self.rows[index] for index in mine]
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [collate(group, self.settings.categories, self.device) for group in groups]

    def _evaluate_if_due(self, step: int) -> None:
        """Evaluate within training, as often as the spec says; the last step is left to the stage behind it."""
        every, when = self.spec.evaluate.every_steps, f"step-{step}"
        is_due = step in self.settings.rungs or (every is not None and step % every == 0)
        if not is_due or step == self.total_steps:
            return
        if not self._agree(lambda: self._is_evaluated(when, step)):
            self.evaluate(when, step)

    def evaluate(self, when: str, step: int) -> None:
        """Measure held-out loss and routing, answer the prompts and run the tasks, before, during or after training.

        The files of losses and samples are written last, when the events are out: they say that it was done. Attempts
        that overlap may both write them; the weights of a step are the same in both, so it does not matter who is last.
        """
        categories = self.settings.categories
        losses, routing = measure_held_out(self.step_module, self.held_out, categories)
        require_measured(losses, when)
        evaluate = self.spec.evaluate
        samples = answer(self.step_module.model, self.tokenizer, evaluate.prompts, evaluate.max_new_tokens)
        model = LanguageModel(self.step_module.model, self.tokenizer, evaluate.batch_size)
        tell = partial(self._emit, "eval.task", "evaluate")
        evaluate_tasks(evaluate, model, self.run, when=when, step=step, seed=self.spec.seed, tell=tell)
        if self.rank == 0:
            health = write_router_health(self.run, routing, categories, when=when, step=step)
            self._emit("eval.routing", "evaluate", **health)
        self._emit("eval.held_out", "evaluate", when=when, step=step, loss=losses)
        self._emit("eval.samples", "evaluate", when=when, step=step, samples=samples)
        self._flush()
        if self.rank == 0:
            self.run.write_json(HELD_OUT_FILE.format(when=when), {"step": step, "loss": losses})
            self.run.write_json(SAMPLES_FILE.format(when=when), {"step": step, "samples": samples})

    def _is_evaluated(self, when: str, step: int) -> bool:
        documents = [self.run.read_json(file.format(when=when)) for file in (HELD_OUT_FILE, SAMPLES_FILE)]
        return all(document is not None and document["step"] == step for document in documents)

    def _agree(self, ask: Callable[[], bool]) -> bool:
        """Worker 0's answer; all workers must call."""
        answers = [ask() if self.rank == 0 else False]
        dist.broadcast_object_list(answers)
        return answers[0]

    @contextmanager
    def _finishing(self, stage: Stage, *, reused: bool) -> Iterator[None]:
        """Say at the end of the block how long the stage took in these workers, and whether an earlier start did it."""
        start = time.monotonic()
        yield
        self._emit("stage.finished", stage, duration_s=time.monotonic() - start, reused=reused, summary={})
        self._flush()

    def _emit(self, type: EventType, stage: Stage, **data: Any) -> None:
        if self.rank == 0:
            self._events.emit(type, stage=stage, **data)

    def _warn(self, kind: WarningKind, message: str) -> None:
        if self.rank == 0:
            self._events.emit("job.warning", stage="train", message=message, kind=kind)

    def _flush(self) -> None:
        if self.rank == 0:
            self._events.flush()
