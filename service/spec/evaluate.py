"""What is measured before, during and after training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from service.spec.base import SpecModel, conflict
from service.spec.endpoint import EndpointSpec
from service.spec.source import ColumnName, ColumnTemplate, FileSet, Name


class TaskBase(SpecModel):
    """What all tasks have."""

    name: Name | None = None
    """Unique among the job's tasks; by default the kind."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many questions."""

    @property
    def label(self) -> str:
        """What files and reports call the task."""
        return self.name or str(getattr(self, "kind"))  # noqa: B009  each task has one

    @property
    def metric_names(self) -> tuple[str, ...] | None:
        """What the task measures, from 0 to 1; None where only its run tells."""
        return None


class FewShotSpec(FileSet):
    """Solved examples that stand before each question, as earlier turns of the conversation."""

    num_examples: int = Field(default=8, ge=1, le=64)
    """The first so many rows of the file, which is of the task's own format."""


class Gsm8kTask(TaskBase, FileSet):
    """Grade-school mathematics with chain of thought: greedy, exact match of the number behind `####`.

    Rows have `question` and `answer`, as the published files.
    """

    kind: Literal["gsm8k"]
    few_shot: FewShotSpec | None = None
    """Rows of the training split, never of the test split; null asks without examples."""
    instruction: str = "Think step by step. End with a line of #### and the answer as a number."
    """Stands below each question; may be empty."""
    max_new_tokens: int = Field(default=512, ge=1, le=32_768)
    """Length limit of an answer."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the task measures."""
        return ("exact_match",)


class HumanEvalTask(TaskBase, FileSet):
    """Python functions to complete, run against their tests in a sandbox: pass@k.

    Rows have `task_id`, `prompt`, `entry_point` and `test`, as the published file.
    """

    kind: Literal["humaneval"]
    instruction: str = "Complete this Python function. Answer with the whole function, in one block of code."
    """Stands above each function; may be empty."""
    num_samples: int = Field(default=1, ge=1, le=200)
    """Answers to each problem."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Each k that pass@k is estimated for, without bias, from all answers."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the sampling; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Of the sampling."""
    max_new_tokens: int = Field(default=512, ge=1, le=32_768)
    """Length limit of an answer."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Seconds that a program may run, by the clock and of processor time."""
    memory_mb: int = Field(default=1024, ge=64, le=65_536)
    """Address space of a process of the program, in MiB."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the task measures."""
        return tuple(f"pass@{k}" for k in self.pass_at)

    @model_validator(mode="after")
    def _samples_differ(self) -> HumanEvalTask:
        if self.num_samples > 1 and self.temperature == 0:
            raise conflict("temperature", "must be above 0 when there are several samples: they would all be the same")
        for index, k in enumerate(self.pass_at):
            if k > self.num_samples:
                raise conflict(f"pass_at.{index}", f"exceeds `num_samples` {self.num_samples}")
        if not self.pass_at:
            raise conflict("pass_at", "give at least one")
        return self


class ChoicesForm(SpecModel):
    """A row holds a question and its choices in columns of any name; a dot leads into an object."""

    question: ColumnTemplate
    """Column of the question, or text with `{column}` in it."""
    choices: ColumnName
    """Column with the list of choices, or with an object of text by name, such as that of letters."""
    answer: ColumnName
    """Column with the right choice: its place from 0, its text or name, or a list of 0 and one 1."""


class MultipleChoiceTask(TaskBase, FileSet):
    """Questions whose choices are compared by likelihood, plain and per character; nothing is generated."""

    kind: Literal["multiple_choice"]
    form: Annotated[
        Annotated[Literal["hhh", "big_bench"], Tag("named")] | Annotated[ChoicesForm, Tag("columns")],
        Discriminator(lambda form: "named" if isinstance(form, str) else "columns"),
    ] = "hhh"
    """How a row holds its choices: `hhh` has `input` and `targets` of `choices` and `labels`; `big_bench` has `input`
    and `target_scores` by choice (of a JSON file the list `examples`); or a mapping of columns."""
    few_shot: FewShotSpec | None = None
    """Rows with the same form, answered with the right choice; null asks without examples."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the task measures."""
        return ("accuracy_per_character", "accuracy")


class JudgeSpec(EndpointSpec):
    """The language model that rates answers."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the sampling."""
    max_tokens: int = Field(default=2048, ge=1)
    """Length limit of a judgement."""


class MtBenchTask(TaskBase, FileSet):
    """Conversations of two turns, each answer rated from 1 to 10 by a judge.

    Rows have `question_id`, `category` and `turns`, as the published file, and may have `reference`.
    """

    kind: Literal["mt_bench"]
    judge: JudgeSpec
    temperatures: dict[str, Annotated[float, Field(ge=0, le=2)]] = Field(
        default={"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    )
    """Of the sampling, by category; greedy in all others."""
    max_new_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Length limit of an answer."""


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("not an absolute path; a relative one is resolved by the client, against the spec's file")
    return path


class LmEvalTask(TaskBase):
    """Tasks of lm-evaluation-harness, which must be installed: `sleddog[lm-eval]`."""

    kind: Literal["lm_eval"]
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the harness's tasks, such as `ifeval` or `mmlu`."""
    include_path: Annotated[str, AfterValidator(_absolute)] | None = None
    """Directory with tasks of one's own, on the training workers' nodes."""
    num_few_shot: int | None = Field(default=None, ge=0, le=64)
    """Solved examples before each question; by default the task's own number."""
    apply_chat_template: bool = True
    """Whether questions are asked as a user's turn; likelihoods of running text need it off."""


Task = Annotated[Gsm8kTask | HumanEvalTask | MultipleChoiceTask | MtBenchTask | LmEvalTask, Field(discriminator="kind")]


class EvaluateSpec(SpecModel):
    """What is measured before and after training, beside the held-out loss per category."""

    prompts: tuple[str, ...] = ()
    """Answered greedily before and after, for the reader of the report."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Length limit of an answer to one of the `prompts`."""
    tasks: tuple[Task, ...] = ()
    """Benchmarks. One that fails is reported as failed, with the reason, and the job goes on."""
    every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between evaluations, which then also take place during training; null only before and after."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Prompts that one worker answers at a time; each needs a key-value cache of its own."""

    @model_validator(mode="after")
    def _labels_differ(self) -> EvaluateSpec:
        labels = [task.label for task in self.tasks]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                raise conflict(f"tasks.{index}.name", f"two tasks are named {label!r}: give one a name of its own")
        return self
