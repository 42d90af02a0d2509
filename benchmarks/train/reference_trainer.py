"""Training on two workers, beside Hugging Face's trainers with DeepSpeed ZeRO-2 on a model of the same size.

    make bench-peers
    python -m benchmarks.train.reference_trainer [--steps 5] [--contenders sleddog trainer sft]

All take the same packed rows of 4096 tokens (`benchmarks.moe.step`), one a worker and step, over gloo, in fp32, with
clipping and fused AdamW.
    sleddog  the job's step: the hybrid of about 100M parameters, its experts shared by the two workers (EP 2)
    trainer  transformers' `Trainer` with Qwen2-MoE: `grouped_mm` experts, SDPA with the mask that it derives from
             restarting positions; data-parallel, as it has no expert parallelism
    sft      the same with TRL's `SFTTrainer`, whose output head sees trained positions only

Each worker of each contender is a process of its own; the contenders take their steps in turn, while the others wait
for a message, which needs no processor. Processor seconds, of all workers, say the same under other load.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.moe.step import BALANCE_LOSS_COEFFICIENT, CONFIG, NUM_TOKENS, Row, qwen2_moe
from moe.attention import Documents
from ray_jobs.train.engine import import_deepspeed
from service.spec.job import JobSpec

NUM_WORKERS = 2
WARM_UP_STEPS = 2
LEARNING_RATE, CLIP_NORM = 1e-4, 1.0


class Report(NamedTuple):
    """What a worker says of a step."""

    cpu_s: float
    peak_bytes: int


class Turn:
    """One worker's end of the pipe: a step when the word comes, and word when it is done."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._start = pipe, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block is one step."""
        self.await_word()
        yield
        self.report()

    def await_word(self) -> None:
        """Wait for the others to be done."""
        self._pipe.recv()
        self._start = time.process_time()

    def report(self) -> None:
        """Say that the step is done."""
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._pipe.send(Report(time.process_time() - self._start, peak_bytes))


def sleddog(steps: int, turn: Turn) -> None:
    """This project's engine and step."""
    from moe.init import initialize
    from moe.model import HybridModel, PackedBatch
    from ray_jobs.train.batches import TrainBatch
    from ray_jobs.train.engine import TrainingStep, build_engine, expert_parallel_group
    from ray_jobs.train.step import take_step

    dist.init_process_group("gloo")
    model = HybridModel(CONFIG, expert_parallel_group(NUM_WORKERS))
    initialize(model, seed=0)
    engine = build_engine(TrainingStep(model, BALANCE_LOSS_COEFFICIENT, 1), job_spec())
    for step in range(steps):
        row = Row(NUM_WORKERS * step + dist.get_rank())
        packed = PackedBatch(row.tokens_T, Documents.from_lengths(row.lengths), (NUM_TOKENS,))
        batch = TrainBatch(packed, row.trained_T, torch.zeros_like(row.tokens_T))
        with turn.step():
            take_step(engine, [batch], LEARNING_RATE, 1)


def job_spec() -> JobSpec:
    """What is spoken of here; the rest of it concerns no step."""
    return JobSpec.model_validate(
        {
            "name": "bench",
            "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
            "data": {"sources": [{"name": "a", "category": "c", "uri": "file:///a.jsonl", "form": "messages"}]},
            "train": {"global_batch_rows": NUM_WORKERS, "precision": "fp32", "gradient_clip_norm": CLIP_NORM},
            "parallel": {"num_workers": NUM_WORKERS, "expert_parallel_size": NUM_WORKERS},
        }
    )


def trainer(steps: int, turn: Turn) -> None:
    """Transformers' own."""
    from transformers import Trainer, TrainingArguments

    train(steps, turn, Trainer, TrainingArguments)


def sft(steps: int, turn: Turn) -> None:
    """TRL's, given rows that are packed and tokenised already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # asked for, but nothing to do
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    make = partial(SFTTrainer, processing_class=tokenizer)
    train(steps, turn, make, SFTConfig, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})


def rows(num_rows: int) -> Any:
    """The same rows in the form of Hugging Face."""
    from datasets import Dataset

    def columns() -> Iterator[dict[str, list[int]]]:
        for number in range(num_rows):
            row = Row(number)
            yield {
                "input_ids": row.tokens_T.tolist(),
                "position_ids": Documents.from_lengths(row.lengths).positions_T.tolist(),
                "labels": row.tokens_T.where(row.trained_T, -100).tolist(),
            }

    return Dataset.from_list(list(columns())).with_format("torch")


def train(steps: int, turn: Turn, make_trainer: Any, make_arguments: Any, **settings: Any) -> None:
    """One of Hugging Face's trainers over the rows, in their order."""
    from accelerate import PartialState
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        """Lets the trainer's own loop take its steps in turn."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn.await_word()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn.report()

    import_deepspeed()  # without the build of an operation that training does not use
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")  # without a GPU it would take each worker for the only one
    with tempfile.TemporaryDirectory() as directory:
        arguments = make_arguments(
            output_dir=directory,
            per_device_train_batch_size=1,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            max_grad_norm=CLIP_NORM,
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            accelerator_config={"use_configured_state": True},
            deepspeed={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": CLIP_NORM,
                "zero_optimization": {"stage": 2, "contiguous_gradients": True, "reduce_scatter": True},
                "zero_allow_untested_optimizer": True,
            },
            **settings,
        )
        trainer = make_trainer(
            model=qwen2_moe(),
            args=arguments,
            train_dataset=rows(NUM_WORKERS * steps),
            data_collator=lambda batch: {key: torch.stack([row[key] for row in batch]) for key in batch[0]},
            callbacks=[InTurn()],
        )
        trainer.train()
        assert (trainer.accelerator.num_processes, trainer.model_wrapped.zero_optimization_stage()) == (NUM_WORKERS, 2)


CONTENDERS: dict[str, Callable[[int, Turn], None]] = {"sleddog": sleddog, "trainer": trainer, "sft": sft}


def contend(name: str, steps: int, environment: dict[str, str], pipe: Connection) -> None:
    """One worker of one contender."""
    logging.disable(logging.WARNING)
    os.environ |= environment
    torch.set_num_threads(1)
    torch.manual_seed(0)
    CONTENDERS[name](steps, Turn(pipe))


class Contender:
    """The workers of one, as seen from the process that says whose turn it is."""

    def __init__(self, name: str, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.seconds: list[float] = []
        self.cpu_s: list[float] = []
        self.peak_bytes = 0
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(NUM_WORKERS):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(NUM_WORKERS),
                "LOCAL_WORLD_SIZE": str(NUM_WORKERS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
            }
            pipe, theirs = context.Pipe()
            self._pipes.append(pipe)
            self._processes.append(context.Process(target=contend, args=(name, steps, environment, theirs)))
            self._processes[-1].start()
            theirs.close()  # so that a worker's end is seen

    def step(self) -> None:
        """One step of all its workers."""
        start = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(True)
        reports: list[Report] = [pipe.recv() for pipe in self._pipes]
        self.seconds.append(time.perf_counter() - start)
        self.cpu_s.append(sum(report.cpu_s for report in reports))
        self.peak_bytes = sum(report.peak_bytes for report in reports)

    def finish(self) -> None:
        """Wait for the end."""
        for process in self._processes:
            process.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    options = parser.parse_args()
    steps = WARM_UP_STEPS + options.steps
    contenders = {name: Contender(name, steps) for name in options.contenders}
    for _ in range(steps):
        for contender in contenders.values():
            contender.step()
    for contender in contenders.values():
        contender.finish()
    trained = sum(int(Row(index).trained_T.sum()) for index in range(NUM_WORKERS * steps)) / steps
    columns = "trainer", "median s", "min s", "trained tokens/s", "x sleddog", "processor s", "x sleddog", "peak GiB"
    print(f"| {' | '.join(columns)} |\n|" + " --- |" * len(columns))
    for name, contender in contenders.items():
        print(f"| {name} | {' | '.join(figures(contender, contenders['sleddog'], trained))} |")


def figures(contender: Contender, mine: Contender, trained: float) -> list[str]:
    """One line of the table; ratios are medians of those of each step."""
    seconds, cpu_s = contender.seconds[WARM_UP_STEPS:], contender.cpu_s[WARM_UP_STEPS:]
    median = statistics.median(seconds)
    return [
        f"{median:.2f}",
        f"{min(seconds):.2f}",
        f"{trained / median:,.0f}",
        f"{median_ratio(seconds, mine.seconds[WARM_UP_STEPS:]):.2f}",
        f"{statistics.median(cpu_s):.2f}",
        f"{median_ratio(cpu_s, mine.cpu_s[WARM_UP_STEPS:]):.2f}",
        f"{contender.peak_bytes / 2**30:.2f}",
    ]


def median_ratio(theirs: list[float], mine: list[float]) -> float:
    """Of the steps, each beside the other's."""
    return statistics.median(their / my for their, my in zip(theirs, mine, strict=True))


if __name__ == "__main__":
    main()
