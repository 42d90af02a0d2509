"""The model card of an exported checkpoint, written from what the run has measured.

The driver writes it into the committed export when all else is done; it is the only file there that no checksum covers,
for it may be edited. Paths and URIs stay out of it: sources appear by their names, a base by its name on the Hub or the
last part of its path. The front matter is the Hub's (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from moe.config import MoEConfig
from ray_jobs.run_directory import write_file
from service.spec.job import JobSpec
from service.spec.model import CardSpec, CheckpointBase
from service.spec.source import SourceSpec

CARD_FILE = "README.md"
_TEMPLATE_FILE = "model_card.md.jinja"
_TAGS = ["arctic", "mixture-of-experts", "moe", "conversational", "sft", "safetensors", "sleddog"]
_HUB_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")


class Metric(NamedTuple):
    """One measurement, before training and after.

    Attributes:
        task: what was measured on, such as a category or a benchmark.
        name: of the measure, such as `accuracy`.
        before: None where it was not measured.
        after: likewise.
    """

    task: str
    name: str
    before: float | None
    after: float | None


def write_model_card(spec: JobSpec, report: dict[str, Any], config: MoEConfig) -> None:
    """Write the card beside the weights, whole or not at all.

    Args:
        spec: the job's.
        report: of the job, as `ray_jobs.report` builds it.
        config: the model's architecture.
    """
    write_file(f"{report['export']['path']}/{CARD_FILE}", model_card(spec, report, config).encode())


def model_card(spec: JobSpec, report: dict[str, Any], config: MoEConfig) -> str:
    """The card's text: YAML front matter and Markdown; arguments as `write_model_card` takes them."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701  Markdown
    environment.filters["cell"] = _cell
    template = environment.from_string((files("ray_jobs.train") / _TEMPLATE_FILE).read_text())
    losses, scores = list(_held_out_losses(report)), list(_scores(report))
    body = template.render(
        spec=spec,
        report=report,
        config=config,
        base=_base_name(spec),
        license=_license_in_words(spec.model.card),
        license_of_source={source.name: source.license or "unknown" for source in spec.data.sources},
        losses=losses,
        scores=scores,
    )
    return f"---\n{_front_matter(spec, losses, scores).to_yaml()}\n---\n\n{body}\n"


def _front_matter(spec: JobSpec, losses: list[Metric], scores: list[Metric]) -> ModelCardData:
    card = spec.model.card
    is_known = card.license is not None
    datasets = {
        found[1]
        for source in spec.data.sources
        if isinstance(source, SourceSpec) and (found := _HUB_DATASET.match(source.uri))
    }
    results = [
        *(_result(line, "held-out", f"held-out conversations, {line.task}") for line in losses),
        *(_result(line, line.task, line.task) for line in scores),
    ]
    return ModelCardData(
        license=card.license if is_known else "other",
        license_name=card.license_name if is_known else "unknown",
        license_link=card.license_link,
        language=list(card.language) or None,
        base_model=card.base_model,
        base_model_relation="finetune" if card.base_model else None,
        datasets=sorted(datasets) or None,
        library_name="sleddog",
        pipeline_tag="text-generation",
        tags=list(_TAGS),
        model_name=spec.name,
        eval_results=[result for result in results if result.metric_value is not None] or None,
    )


def _result(line: Metric, dataset_type: str, dataset_name: str) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset_type,
        dataset_name=dataset_name,
        dataset_config=line.task,
        metric_type=line.name,
        metric_value=line.after,
    )


def _held_out_losses(report: dict[str, Any]) -> Iterator[Metric]:
    before, after = (report["held_out"][when] for when in ("before", "after"))
    for category in sorted(before | after):
        yield Metric(category, "loss", before.get(category), after.get(category))


def _scores(report: dict[str, Any]) -> Iterator[Metric]:
    """Of the benchmarks, where the job had any that did not fail."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for summary in report["evaluation"]:
        for name, metric in summary["metrics"].items():
            scores.setdefault((summary["task"], name), {})[summary["when"]] = metric["score"]
    for (task, name), by_when in scores.items():
        yield Metric(task, name, by_when.get("before"), by_when.get("after"))


def _base_name(spec: JobSpec) -> str | None:
    """What to call the base in the text; None for random weights."""
    if not isinstance(spec.model.base, CheckpointBase):
        return None
    return spec.model.card.base_model or spec.model.base.path.rstrip("/").rpartition("/")[2]


def _license_in_words(card: CardSpec) -> str:
    name = card.license_name or card.license or "unknown"
    return f"[{name}]({card.license_link})" if card.license_link else name


def _cell(value: object) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(str(value).split()).replace("|", r"\|")
