"""MT-Bench: conversations of two turns, each answer rated from 1 to 10 by a judge (single-answer grading).

The judge ends with `[[rating]]`. A judgement without one is counted and listed as `unparseable`, and is in no mean. The
questions, the two turns, the categories' temperatures and the reference answers are the published ones (Zheng et al.
2023); the instructions to the judge are our own, so compare ratings with each other, not with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pydantic import Field

from moe.sampling import Sampling
from ray_jobs.endpoint import Endpoint
from ray_jobs.evaluate.language_model import Answer, LanguageModel, Messages
from ray_jobs.evaluate.results import Metric, Sample, TaskResult
from ray_jobs.evaluate.rows import Row, read_questions
from ray_jobs.evaluate.workers import WorkFailedError, on_first
from service.spec.evaluate import MtBenchTask

_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_INSTRUCTIONS = (
    "You are an impartial judge of an AI assistant's answers. Judge how helpful, relevant, accurate, deep and detailed "
    "the answer at hand is{reference}. First explain your judgement in a few sentences; be as objective as you can. "
    "Then rate the answer on a scale from 1 to 10, strictly in this form on the last line: Rating: [[5]]"
)
_REFERENCE = ", compared with the reference answer, and point out its mistakes"


class MtBenchRow(Row):
    """A row of the published file."""

    question_id: int | str
    category: str
    turns: tuple[str, ...] = Field(min_length=1)
    reference: tuple[str, ...] = ()


class MtBench:
    """The task with its questions read.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        SleddogError: as `read_questions`.
    """

    def __init__(self, spec: MtBenchTask, field: str) -> None:
        self._spec, self._field = spec, field
        self._rows = read_questions(spec, spec.limit, field, MtBenchRow)

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Hold all conversations, then have them judged by worker 0; all workers must call."""
        samples = self._converse(model, seed)
        try:
            judgements = on_first(lambda: self._judge(samples))
        except WorkFailedError as error:
            unjudged = [sample | {"verdict": "not_judged", "judgement": None, "rating": None} for sample in samples]
            return TaskResult(unjudged, {}, failure=str(error))
        judged = []
        for sample, judgement in zip(samples, judgements, strict=True):
            rating = rating_of(judgement)
            verdict = "unparseable" if rating is None else "rated"
            judged.append(sample | {"verdict": verdict, "judgement": judgement, "rating": rating})
        if not any(sample["verdict"] == "rated" for sample in judged):
            return TaskResult(judged, {}, failure="the judge gave no rating that could be read")
        return TaskResult(judged, _metrics(judged))

    def _converse(self, model: LanguageModel, seed: int) -> list[Sample]:
        conversations: list[Messages] = [[] for _ in self._rows]
        answers: list[list[Answer]] = [[] for _ in self._rows]
        for turn in range(max(len(row.turns) for row in self._rows)):
            for temperature in sorted({self._temperature(row) for row in self._rows}):
                asked = [
                    index
                    for index, row in enumerate(self._rows)
                    if turn < len(row.turns) and self._temperature(row) == temperature
                ]
                for index in asked:
                    conversations[index].append({"role": "user", "content": self._rows[index].turns[turn]})
                said = model.answer(
                    [conversations[index] for index in asked],
                    self._spec.max_new_tokens,
                    Sampling(temperature),
                    seed + turn,
                )
                for index, answer in zip(asked, said, strict=True):
                    conversations[index].append({"role": "assistant", "content": answer.text})
                    answers[index].append(answer)
        return [
            {
                "id": row.question_id,
                "turn": turn + 1,
                "category": row.category,
                "prompt": messages[: 2 * turn + 1],
                "answer": answer.text,
                "finish": answer.finish,
                "target": row.reference[turn] if turn < len(row.reference) else None,
            }
            for row, messages, said in zip(self._rows, conversations, answers, strict=True)
            for turn, answer in enumerate(said)
        ]

    def _temperature(self, row: MtBenchRow) -> float:
        return self._spec.temperatures.get(row.category, 0.0)

    def _judge(self, samples: Sequence[Sample]) -> list[str]:
        judge = self._spec.judge
        with Endpoint(judge, f"{self._field}.judge") as endpoint:
            pool = ThreadPoolExecutor(judge.num_parallel)
            ask = partial(endpoint.complete, max_tokens=judge.max_tokens)
            try:
                return list(pool.map(ask, map(judge_request, samples)))
            finally:
                pool.shutdown(cancel_futures=True)


def judge_request(sample: Sample) -> Messages:
    """What the judge is asked about one answer.

    Args:
        sample: its `prompt`, `answer` and `target`, which is the reference answer, if there is one.
    """
    reference = sample["target"]
    parts = [f"[{message['role']}]\n{message['content']}" for message in sample["prompt"]]
    parts.append(f"[assistant: the answer to judge]\n{sample['answer']}")
    if reference is not None:
        parts.append(f"[reference answer]\n{reference}")
    return [
        {"role": "system", "content": _INSTRUCTIONS.format(reference="" if reference is None else _REFERENCE)},
        {"role": "user", "content": "\n\n".join(parts)},
    ]


def rating_of(judgement: str) -> float | None:
    """The last rating in double brackets; None without one from 1 to 10."""
    found = _RATING.findall(judgement)
    rating = float(found[-1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def _metrics(samples: Sequence[Sample]) -> dict[str, Metric]:
    """The mean of all ratings, then that of each turn and category."""
    rated = [sample for sample in samples if sample["rating"] is not None]
    groups: dict[str, list[float]] = {"rating": [sample["rating"] for sample in rated]}
    keys: list[Any] = [f"turn_{sample['turn']}" for sample in rated]
    for key, sample in sorted(zip(keys, rated, strict=True), key=lambda pair: pair[0]):
        groups.setdefault(f"rating_{key}", []).append(sample["rating"])
    for sample in sorted(rated, key=lambda sample: str(sample["category"])):
        groups.setdefault(f"rating_{sample['category']}", []).append(sample["rating"])
    return {name: Metric.of(ratings) for name, ratings in groups.items()}
