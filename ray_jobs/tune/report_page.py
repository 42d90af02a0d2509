"""One HTML page on a sweep, to keep or to mail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_jobs.html.page import page_of
from ray_jobs.html.parts import details, paragraph, table
from ray_jobs.tune.pareto import pareto_front
from ray_jobs.tune.pictures import curves, mixes
from ray_jobs.tune.verdict import describe, signed
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, SweepResults, Trial


def page(spec: SweepSpec, results: SweepResults) -> str:
    """The page.

    Args:
        spec: the sweep's.
        results: of it, with their verdict.
    """
    return page_of(f"Sweep {spec.name}", _sections(spec, results))


def _sections(spec: SweepSpec, results: SweepResults) -> Iterator[tuple[str, str]]:
    yield "What was found", "".join(paragraph(sentence) for sentence in results.verdict)
    for stage in reversed(results.stages):
        candidates = [candidate for candidate in results.candidates if candidate.stage == stage.name]
        trials = [trial for trial in results.trials if trial.stage == stage.name]
        beams = [candidate.id for candidate in _ranked(candidates) if candidate.is_beam]
        yield f"Stage {stage.name}: candidates", _leaderboard(candidates) + mixes(candidates, spec.categories)
        sound = _without_failures(candidates, trials)
        yield f"Stage {stage.name}: no other candidate is better in every metric", _front(spec, sound)
        yield f"Stage {stage.name}: loss by step", curves(trials, beams)
    yield "Do the stages agree", _agreements(results)
    yield "Every trial", details(f"{len(results.trials)} trials", _trials(results))


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (candidate.rank is None, candidate.rank or 0, candidate.id))


def _without_failures(candidates: Sequence[Candidate], trials: Sequence[Trial]) -> list[Candidate]:
    """Those whose trials all finished; the base mix in any case, which all are compared with."""
    incomplete = {trial.candidate for trial in trials if trial.status != "succeeded"}
    return [one for one in candidates if one.role == "base" or one.id not in incomplete]


def _leaderboard(candidates: Sequence[Candidate]) -> str:
    metrics = list(dict.fromkeys(name for candidate in candidates for name in candidate.gains))
    is_foretold = any(candidate.predicted for candidate in candidates)
    foretold = ("foretold",) if is_foretold else ()
    return table(
        ("rank", "candidate", "what", "from", "score", *foretold, *metrics, "beam", "goes on", "breaks", "worker s"),
        [
            (
                "" if one.rank is None else one.rank,
                one.id,
                describe(one),
                one.parent or one.role.replace("_", " "),
                "" if one.score is None else signed(one.score),
                *((signed(one.predicted) if one.predicted else "",) if is_foretold else ()),
                *(signed(one.gains[name]) if name in one.gains else "" for name in metrics),
                "yes" if one.is_beam else "",
                "yes" if one.is_promoted else "",
                ", ".join(one.broken),
                f"{one.worker_seconds:,.0f}",
            )
            for one in _ranked(candidates)
        ],
    )


def _front(spec: SweepSpec, candidates: Sequence[Candidate]) -> str:
    metrics = [metric.name for metric in spec.objective.metrics]
    front = pareto_front(candidates, metrics)
    if len(metrics) < 2 or not front:
        return ""
    return table(
        ("candidate", "what", *metrics, "breaks"),
        [
            (one.id, describe(one), *(signed(one.gains[name]) for name in metrics), ", ".join(one.broken))
            for one in front
        ],
    )


def _agreements(results: SweepResults) -> str:
    if not results.agreements:
        return ""
    return table(
        ("one", "other", "candidates", "rank correlation", "by chance", "same best"),
        [
            (
                one.first,
                one.second,
                one.num_candidates,
                "" if one.spearman is None else f"{one.spearman:.2f}",
                "" if one.chance is None else f"{one.chance:.1%}",
                "yes" if one.same_best else "no",
            )
            for one in results.agreements
        ],
    )


def _trials(results: SweepResults) -> str:
    metrics = list(dict.fromkeys(name for trial in results.trials for name in trial.metrics))
    return table(
        ("trial", "seed", "status", "steps", "tokens", "s", "worker s", *metrics, "reason"),
        [
            (
                trial.id,
                trial.seed,
                trial.status,
                trial.steps,
                trial.tokens,
                f"{trial.duration_s:,.0f}",
                f"{trial.worker_seconds:,.0f}",
                *(f"{trial.metrics[name]:.4f}" if name in trial.metrics else "" for name in metrics),
                trial.reason,
            )
            for trial in results.trials
        ],
    )
