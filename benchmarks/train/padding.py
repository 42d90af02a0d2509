"""What packing and whole conversations save, on prepared data: tokens processed, and time, for the same trained tokens.

    sleddog data prepare job.yaml --output prepared
    python -m benchmarks.train.padding prepared [--batch 8] [--documents 24] [--rounds 3]

Examples are
    whole     each conversation once, trained on all of the assistant's turns
    unrolled  one example a turn of the assistant, which ends with it and is trained on it alone
and lie in
    packed    rows filled by best-fit decreasing
    grouped   batches padded to their longest, each 50 batches' examples sorted by length, as by `group_by_length`
    batch     batches padded to their longest, in random order
    row       rows padded to the full length

Tokens and FLOPs are counted over all of the data. FLOPs are those of the layers' matrices, 6 a parameter and token, and
of causal attention, 6 x hidden x length^2 a layer; the output head takes the trained tokens, which are the same in all.
Time is measured on a random sample of conversations: forward and backward pass of the model of `benchmarks.moe.step`,
for which padding is tokens like others; token ids are taken modulo its vocabulary. The ways are timed in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.moe.step import CONFIG
from moe.attention import Documents
from moe.init import initialize
from moe.model import HybridModel, PackedBatch
from ray_jobs.data.packed_directory import find_packed
from ray_jobs.data.packed_rows import PackedRows
from ray_jobs.data.packing import pack
from ray_jobs.train.loss import completion_loss

GROUPED_BATCHES = 50


@dataclass(frozen=True)
class Example:
    """Tokens, and which of them are trained; padding is added where it is laid."""

    tokens: np.ndarray
    trained: np.ndarray

    def padded(self, length: int) -> Example:
        """With tokens that are not trained behind it."""
        missing = length - len(self.tokens)
        return Example(np.pad(self.tokens, (0, missing)), np.pad(self.trained, (0, missing)))


Batch = list[list[Example]]
"""Rows, each of whole examples."""


def conversations(url: str) -> list[Example]:
    """All that is packed to train on."""
    rows = PackedRows(f"{url}/train")
    found = []
    for number in range(len(rows)):
        row = rows[number]
        borders = np.cumsum(row.document_lengths)[:-1]
        parts = zip(np.split(row.tokens, borders), np.split(row.trained, borders), strict=True)
        found += [Example(tokens, trained) for tokens, trained in parts]
    return found


def unroll(examples: Sequence[Example]) -> list[Example]:
    """One example for each turn that is trained."""
    unrolled = []
    for example in examples:
        edges = np.diff(example.trained.astype(np.int8), prepend=0, append=0)
        for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            unrolled.append(Example(example.tokens[:stop], np.arange(stop) >= start))
    return unrolled


class Layouts:
    """The ways to lay examples into batches.

    Args:
        row_length: of a packed row, and of one padded to the full length.
        batch: examples of a padded batch.
    """

    def __init__(self, row_length: int, batch: int) -> None:
        self._row_length, self._batch = row_length, batch
        self.ways: dict[str, Callable[[list[Example]], list[Batch]]] = {
            "packed": self._packed,
            "grouped": self._grouped,
            "batch": lambda examples: self._padded(_shuffled(examples)),
            "row": lambda examples: [[[example.padded(row_length)]] for example in examples],
        }

    def _packed(self, examples: list[Example]) -> list[Batch]:
        packing = pack(np.array([len(example.tokens) for example in examples]), self._row_length)
        return [[[examples[number] for number in row]] for row in packing.rows(0, len(packing))]

    def _grouped(self, examples: list[Example]) -> list[Batch]:
        shuffled, size = _shuffled(examples), GROUPED_BATCHES * self._batch
        groups = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        return self._padded([one for group in groups for one in sorted(group, key=lambda one: -len(one.tokens))])

    def _padded(self, examples: list[Example]) -> list[Batch]:
        batches = [examples[start : start + self._batch] for start in range(0, len(examples), self._batch)]
        return [[[one.padded(max(len(one.tokens) for one in batch))] for one in batch] for batch in batches]


def _shuffled(examples: list[Example]) -> list[Example]:
    return [examples[number] for number in np.random.default_rng(0).permutation(len(examples))]


class Work(NamedTuple):
    """What some batches ask for."""

    tokens: int
    trained: int
    flops: float


def work_of(batches: list[Batch]) -> Work:
    """Tokens processed, tokens trained, and FLOPs of the layers."""
    examples = [one for batch in batches for row in batch for one in row]
    lengths = np.array([len(one.tokens) for one in examples], dtype=np.float64)
    matrices = CONFIG.num_active_params() - 2 * CONFIG.vocab_size * CONFIG.hidden_size
    attention = CONFIG.num_layers * CONFIG.hidden_size * (lengths**2).sum()
    return Work(
        int(lengths.sum()),
        sum(int(one.trained.sum()) for one in examples),
        6 * (matrices * lengths.sum() + attention),
    )


class Timer:
    """A model, and the processor seconds of its forward and backward pass."""

    def __init__(self) -> None:
        self._model = HybridModel(CONFIG)
        initialize(self._model, seed=0)

    def seconds(self, batches: list[Batch]) -> float:
        """Of all threads, over these batches."""
        start = time.process_time()
        for batch in batches:
            self._pass(batch)
        return time.process_time() - start

    def _pass(self, batch: Batch) -> None:
        examples = [one for row in batch for one in row]
        tokens_T = torch.as_tensor(np.concatenate([one.tokens for one in examples]) % CONFIG.vocab_size).long()
        trained_T = torch.as_tensor(np.concatenate([one.trained for one in examples]))
        documents = Documents.from_lengths([len(one.tokens) for one in examples])
        packed = PackedBatch(tokens_T, documents, tuple(sum(len(one.tokens) for one in row) for row in batch))
        hidden_TD, balances = self._model(packed)
        loss, _ = completion_loss(hidden_TD, self._model.lm_head, tokens_T, trained_T, scale=1e-3)
        (loss + 1e-3 * torch.stack([balance.loss_sum for balance in balances]).sum()).backward()
        self._model.zero_grad(set_to_none=True)


def main() -> None:
    """Print what is counted, then what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", help="directory that `sleddog data prepare` wrote to")
    parser.add_argument("--batch", type=int, default=8, help="examples of a padded batch")
    parser.add_argument("--documents", type=int, default=24, help="conversations that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    packed = find_packed(options.prepared)
    layouts = Layouts(packed.manifest["packing"]["sequence_length"], options.batch)
    whole = conversations(packed.url)
    sample = _shuffled(whole)[: options.documents]
    forms = {"whole": whole, "unrolled": unroll(whole)}
    columns = "examples", "number", "layout", "tokens processed", "a real token", "trained", "x tokens", "x FLOPs"
    print(f"| {' | '.join(columns)} |\n|" + " --- |" * len(columns))
    base = work_of(layouts.ways["packed"](whole))
    for form, examples in forms.items():
        real = sum(len(one.tokens) for one in examples)
        for way, lay in layouts.ways.items():
            work = work_of(lay(examples))
            assert work.trained == base.trained
            print(
                f"| {form} | {len(examples):,} | {way} | {work.tokens:,} | {work.tokens / real:.3f} "
                f"| {work.trained / work.tokens:.2%} | {work.tokens / base.tokens:.2f} "
                f"| {work.flops / base.flops:.2f} |"
            )
    measure({"whole": sample, "unrolled": unroll(sample)}, layouts, options.rounds)


def measure(forms: dict[str, list[Example]], layouts: Layouts, rounds: int) -> None:
    """Time the sample; padding to the full length by its FLOPs alone, as it would take too long."""
    arms = {(form, way): layouts.ways[way](forms[form]) for form in forms for way in ("packed", "grouped", "batch")}
    timer = Timer()
    timer.seconds(arms["whole", "packed"])  # memory is new, kernels are compiled
    seconds: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, batches in arms.items():
            seconds[arm].append(timer.seconds(batches))
    print("\n| examples | layout | tokens processed | processor s | x | x FLOPs |\n|" + " --- |" * 6)
    base = arms["whole", "packed"]
    for (form, way), batches in arms.items():
        work = work_of(batches)
        ratios = [one / other for one, other in zip(seconds[form, way], seconds["whole", "packed"], strict=True)]
        print(
            f"| {form} | {way} | {work.tokens:,} | {median(seconds[form, way]):.2f} | {median(ratios):.2f} "
            f"| {work.flops / work_of(base).flops:.2f} |"
        )


if __name__ == "__main__":
    main()
