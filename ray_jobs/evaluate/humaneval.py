"""HumanEval: Python functions to complete, run against their tests in the sandbox.

A chat model answers with a block of code, mostly the whole function. The program is always prompt, completion, tests
and the call of `check`, as in the benchmark's own harness: a whole function comes below the prompt and takes the place
of its unfinished one, so that the prompt's imports and helper functions are there; code without the function's `def`
goes on where the prompt ends. An answer without a block is taken as code itself, up to where code usually ends.
"""

from __future__ import annotations

import re
import textwrap
from concurrent.futures import ThreadPoolExecutor

import torch

from moe.sampling import GREEDY, Sampling
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.results import Metric, Sample, TaskResult, pass_at_k
from ray_jobs.evaluate.rows import Row, read_questions
from ray_jobs.evaluate.sandbox import ProgramEnd, Sandbox
from ray_jobs.evaluate.workers import deal_back, my_share, on_all
from service.spec.evaluate import HumanEvalTask

_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:\n```|\n?\Z)", re.DOTALL)
_ENDS = re.compile(r"\n(?:class|def|async def|#|@|print|if|assert|```)")
"""Where a completion that stands alone ends: at the next piece of code on the module's level."""


class HumanEvalRow(Row):
    """A row of the published file."""

    task_id: str
    prompt: str
    entry_point: str
    test: str


class HumanEval:
    """The task with its problems read.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        SleddogError: as `read_questions`.
    """

    def __init__(self, spec: HumanEvalTask, field: str) -> None:
        self._spec = spec
        self._rows = read_questions(spec, spec.limit, field, HumanEvalRow)

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Ask for all functions and run them; all workers must call.

        Raises:
            WorkFailedError: a worker's node has no sandbox; nothing was generated then.
        """
        spec = self._spec
        on_all(self._sandbox)  # before the model spends hours on what cannot be run
        rows = [row for row in self._rows for _ in range(spec.num_samples)]
        conversations = [[{"role": "user", "content": self._question(row)}] for row in rows]
        sampling = Sampling(spec.temperature, top_p=spec.top_p) if spec.temperature else GREEDY
        answers = model.answer(conversations, spec.max_new_tokens, sampling, seed)
        completions = [completion_of(answer.text, row) for answer, row in zip(answers, rows, strict=True)]
        ends = self._run_programs([program(row, code) for row, code in zip(rows, completions, strict=True)])
        samples: list[Sample] = [
            {
                "id": row.task_id,
                "sample": number % spec.num_samples,
                "prompt": messages,
                "answer": answer.text,
                "finish": answer.finish,
                "completion": code,
                "target": row.test,
                "verdict": end.ending,
                "detail": end.detail,
            }
            for number, (row, messages, answer, code, end) in enumerate(
                zip(rows, conversations, answers, completions, ends, strict=True)
            )
        ]
        return TaskResult(samples, self._metrics(samples))

    def _sandbox(self) -> Sandbox:
        return Sandbox(self._spec.timeout_s, self._spec.memory_mb * 2**20)

    def _question(self, row: HumanEvalRow) -> str:
        code = f"```python\n{row.prompt.strip()}\n```"
        return f"{self._spec.instruction}\n\n{code}" if self._spec.instruction else code

    def _run_programs(self, programs: list[str]) -> list[ProgramEnd]:
        """Each worker runs its share, as many at once as it has threads; all get all."""

        def run_mine() -> list[ProgramEnd]:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                return list(pool.map(self._sandbox().run, my_share(programs)))

        return deal_back(on_all(run_mine))

    def _metrics(self, samples: list[Sample]) -> dict[str, Metric]:
        n = self._spec.num_samples
        passed = [sample["verdict"] == "passed" for sample in samples]
        counts = [sum(passed[start : start + n]) for start in range(0, len(passed), n)]
        return {f"pass@{k}": Metric.of([pass_at_k(n, count, k) for count in counts]) for k in self._spec.pass_at}


def completion_of(answer: str, row: HumanEvalRow) -> str:
    """What of an answer goes below the prompt.

    Args:
        answer: what the model said.
        row: the problem.
    """
    blocks = [] if answer[:1] == " " else _BLOCK.findall(answer)  # indented, it goes on with the function at once
    definition = re.compile(rf"^\s*(?:async )?def {re.escape(row.entry_point)}\b", re.MULTILINE)
    code = next((block for block in blocks if definition.search(block)), blocks[0] if blocks else answer)
    if definition.search(code):
        return "\n" + textwrap.dedent(code).strip("\n") + "\n"
    if not blocks and (end := _ENDS.search(code)):
        code = code[: end.start()]
    code = code.strip("\n")
    return (code if code[:1].isspace() else textwrap.indent(code, "    ")) + "\n"


def program(row: HumanEvalRow, completion: str) -> str:
    """The text to run: it raises nothing if the completion is right."""
    return f"{row.prompt}{completion}\n{row.test}\ncheck({row.entry_point})\n"
