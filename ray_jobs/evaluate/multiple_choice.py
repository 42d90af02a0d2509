"""Multiple choice by likelihood: which choice would the model rather say, as the answer to the question?

The question is a user's turn, a choice the assistant's, without its end token. A choice's log likelihood is the sum
over its tokens; long choices lose by it, so it is also divided by the choice's characters, which, unlike tokens, do not
depend on the tokenizer. Of choices equally likely the first is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from ray_jobs.evaluate.language_model import LanguageModel, Likelihood, Messages
from ray_jobs.evaluate.results import Metric, Sample, TaskResult
from ray_jobs.evaluate.rows import Row, read_questions
from ray_jobs.evaluate.workers import WorkFailedError
from service.spec.evaluate import ChoicesForm, MultipleChoiceTask
from service.spec.source import FileSet, template_parts

_HHH = ChoicesForm(question="input", choices="targets.choices", answer="targets.labels")


class ChoiceRow(Row):
    """A question with choices, whatever the form it came in."""

    question: str
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int
    """Place of the right choice, from 0."""

    @model_validator(mode="after")
    def _has_its_answer(self) -> ChoiceRow:
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} of {len(self.choices)} choices")
        if not all(self.choices):
            raise ValueError("a choice is empty")
        return self


class MultipleChoice:
    """The task with its questions read.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        SleddogError: as `read_questions`.
    """

    def __init__(self, spec: MultipleChoiceTask, field: str) -> None:
        self._rows = _read(spec, spec, spec.limit, field)
        few_shot = spec.few_shot
        self._examples = _read(few_shot, spec, few_shot.num_examples, f"{field}.few_shot") if few_shot else []

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Compare all choices; all workers must call.

        Raises:
            WorkFailedError: a choice alone is longer than the model's positions.
        """
        del seed  # nothing is random
        conversations = [self._conversation(row) for row in self._rows]
        pairs = [
            (model.prompt(messages), model.encode(choice))
            for messages, row in zip(conversations, self._rows, strict=True)
            for choice in row.choices
        ]
        try:
            likelihoods = iter(model.likelihoods(pairs))
        except ValueError as error:  # of the lengths, the same on all workers
            raise WorkFailedError(str(error)) from error
        samples = [
            _sample(number, row, messages, [next(likelihoods) for _ in row.choices])
            for number, (row, messages) in enumerate(zip(self._rows, conversations, strict=True))
        ]
        chosen = {
            "accuracy_per_character": [sample["answer_per_character"] == sample["target"] for sample in samples],
            "accuracy": [sample["answer"] == sample["target"] for sample in samples],
        }
        return TaskResult(samples, {name: Metric.of([float(hit) for hit in hits]) for name, hits in chosen.items()})

    def _conversation(self, row: ChoiceRow) -> Messages:
        messages = []
        for example in self._examples:
            messages.append({"role": "user", "content": example.question})
            messages.append({"role": "assistant", "content": example.choices[example.answer]})
        return [*messages, {"role": "user", "content": row.question}]


def _sample(number: int, row: ChoiceRow, messages: Messages, likelihoods: list[Likelihood]) -> Sample:
    sums = [likelihood.log_probability for likelihood in likelihoods]
    means = [total / len(choice) for total, choice in zip(sums, row.choices, strict=True)]
    plain, per_character = (values.index(max(values)) for values in (sums, means))
    return {
        "id": number,
        "prompt": messages,
        "choices": row.choices,
        "log_likelihoods": sums,
        "log_likelihoods_per_character": means,
        "answer": plain,
        "answer_per_character": per_character,
        "target": row.answer,
        "verdict": "correct" if per_character == row.answer else "wrong",
    }


def _read(files: FileSet, spec: MultipleChoiceTask, limit: int | None, field: str) -> list[ChoiceRow]:
    form = spec.form if isinstance(spec.form, ChoicesForm) else _HHH

    class FormRow(ChoiceRow):
        @model_validator(mode="before")
        @classmethod
        def _of_form(cls, row: Any) -> Any:
            if not isinstance(row, Mapping):
                raise ValueError(f"not an object but {type(row).__name__}")  # noqa: TRY004  pydantic wants this one
            return _of_scores(row) if spec.form == "big_bench" else _of_columns(row, form)

    rows = read_questions(files, limit, field, FormRow)
    return [ChoiceRow.model_validate(row.model_dump()) for row in rows]  # a local class does not travel


def _of_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = row.get("target_scores")
    if not isinstance(scores, Mapping):
        raise ValueError("no object 'target_scores'")  # noqa: TRY004
    return {"question": row.get("input"), "choices": list(scores), "answer": _only_one(list(scores.values()))}


def _of_columns(row: Mapping[str, Any], form: ChoicesForm) -> dict[str, Any]:
    question = "".join(
        literal + ("" if column is None else _text(_column(row, column)))
        for literal, column in template_parts(form.question)
    )
    choices = _column(row, form.choices)
    names: list[Any] = []
    if isinstance(choices, Mapping):
        names, choices = _named(choices)
    answer = _column(row, form.answer)
    if isinstance(answer, list):
        answer = _only_one(answer)
    elif isinstance(answer, str):
        known = names if answer in names else choices
        if not isinstance(known, list) or answer not in known:
            raise ValueError(f"the answer {answer!r} is none of the choices")
        answer = known.index(answer)
    return {"question": question, "choices": choices, "answer": answer}


def _named(choices: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Names and texts of choices in an object: by name, or as ARC has them in two lists."""
    if set(choices) == {"text", "label"}:
        return list(choices["label"]), list(choices["text"])
    return list(choices), list(choices.values())


def _column(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"no field {path!r}")
        value = value[name]
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the question is no text but {type(value).__name__}")  # noqa: TRY004
    return value


def _only_one(labels: list[Any]) -> int:
    places = [place for place, label in enumerate(labels) if label == 1]
    if len(places) != 1:
        raise ValueError(f"{len(places)} right choices instead of 1")
    return places[0]
