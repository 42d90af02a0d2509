"""GSM8K: a chain of thought, then `#### ` and a number, which must be the right one.

The answer is what stands behind the first `####`, as in the benchmark's own reading: a model that goes on to invent
further questions is judged by its first answer. Numbers are compared as numbers, without thousands separators, so that
18.00 is 18. An answer without `####` counts as wrong, however right its prose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from pydantic import field_validator

from ray_jobs.evaluate.language_model import LanguageModel, Messages
from ray_jobs.evaluate.results import Metric, TaskResult
from ray_jobs.evaluate.rows import Row, read_questions
from service.spec.evaluate import Gsm8kTask

_ANSWER = re.compile(r"####\s*\$?\s*(-?)\s*\$?\s*([0-9.,]+)")


class Gsm8kRow(Row):
    """A row of the published files."""

    question: str
    answer: str

    @field_validator("answer")
    @classmethod
    def _ends_in_a_number(cls, answer: str) -> str:
        if final_number(answer) is None:
            raise ValueError("no number behind ####")
        return answer


class Gsm8k:
    """The task with its questions read.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        SleddogError: as `read_questions`.
    """

    def __init__(self, spec: Gsm8kTask, field: str) -> None:
        self._spec = spec
        self._rows = read_questions(spec, spec.limit, field, Gsm8kRow)
        few_shot = spec.few_shot
        self._examples = (
            read_questions(few_shot, few_shot.num_examples, f"{field}.few_shot", Gsm8kRow) if few_shot else []
        )

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Ask all questions; all workers must call."""
        del seed  # greedy
        conversations = [self._conversation(row) for row in self._rows]
        answers = model.answer(conversations, self._spec.max_new_tokens)
        samples = []
        for number, (row, messages, answer) in enumerate(zip(self._rows, conversations, answers, strict=True)):
            found, target = final_number(answer.text), final_number(row.answer)
            verdict = "no_answer" if found is None else "correct" if found == target else "wrong"
            samples.append(
                {
                    "id": number,
                    "prompt": messages,
                    "answer": answer.text,
                    "finish": answer.finish,
                    "extracted": None if found is None else str(found),
                    "target": str(target),
                    "verdict": verdict,
                }
            )
        scores = [float(sample["verdict"] == "correct") for sample in samples]
        return TaskResult(samples, {"exact_match": Metric.of(scores)})

    def _conversation(self, row: Gsm8kRow) -> Messages:
        messages = []
        for example in self._examples:
            messages += [self._question(example), {"role": "assistant", "content": example.answer}]
        return [*messages, self._question(row)]

    def _question(self, row: Gsm8kRow) -> dict[str, str]:
        parts: Sequence[str] = [row.question, self._spec.instruction]
        return {"role": "user", "content": "\n\n".join(part for part in parts if part)}


def final_number(answer: str) -> Decimal | None:
    """The number behind the first `####`; None where there is none."""
    match = _ANSWER.search(answer)
    if match is None:
        return None
    try:
        return Decimal(match[1] + match[2].replace(",", "").rstrip("."))
    except InvalidOperation:  # such as 1.2.3
        return None
