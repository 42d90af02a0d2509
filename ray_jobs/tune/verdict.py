"""What a sweep found, in sentences with their numbers, each by a rule that is stated here.

A difference counts when it exceeds two standard errors; what does not is called equal. Without a standard error, as
with one seed everywhere, nothing is called better, only higher.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, EndedBy, Estimate, StageResult, SweepResults

_CLEAR_ERRORS = 2.0
_WELL_RANKED, _BADLY_RANKED = 0.7, 0.3
"""Rank correlations from which a proxy is called a good and a bad judge."""
_ENDED_BY: dict[EndedBy, str] = {
    "rounds": "its rounds were used up",
    "no_gain": "the last round brought no gain beyond the noise",
    "max_trials": "a further round would have exceeded max_trials",
    "single_round": "it has a single round",
    "exhausted": "nothing was left to try",
    "baseline_failed": "no trial of the base mix finished, so nothing can be compared",
}


def verdict(spec: SweepSpec, results: SweepResults) -> list[str]:
    """The sentences.

    Args:
        spec: the sweep's.
        results: of it, finished or not.
    """
    by_id = {candidate.id: candidate for candidate in results.candidates}
    sentences: list[str] = []
    if spec.searcher == "leave_one_out":
        sentences += _contributions(results)
    elif results.best is not None:
        sentences += _best(by_id[results.best], by_id)
    else:
        sentences.append("No candidate has finished all its trials.")
    sentences += [sentence for stage in results.stages for sentence in _stage(stage, results)]
    sentences += _agreements(results)
    sentences.append(_cost(results))
    return sentences


def describe(candidate: Candidate) -> str:
    """What makes a candidate what it is."""
    if candidate.left_out is not None:
        return f"the base mix without {candidate.left_out}"
    shares = sorted((candidate.mixture or {}).items(), key=lambda item: -item[1])
    parts = [f"{category} {share:.1%}" for category, share in shares]
    parts += [
        f"{path} = {value:.3g}" if isinstance(value, float) else f"{path} = {value}"
        for path, value in candidate.fields.items()
    ]
    return ", ".join(parts) or "the base mix"


def signed(estimate: Estimate) -> str:
    """An estimate of a gain, with its standard error."""
    return f"{estimate.value:+.2%}" + ("" if estimate.noise is None else f" ± {estimate.noise:.2%}")


def _is_clear(estimate: Estimate) -> bool:
    return estimate.noise is not None and abs(estimate.value) > _CLEAR_ERRORS * estimate.noise


def _best(best: Candidate, by_id: dict[str, Candidate]) -> Iterator[str]:
    assert best.score is not None, "the best has a score"
    if best.role == "base" or best.score.value <= 0:
        yield f"In stage {best.stage} nothing scored above the base mix: keep it."
        return
    if _is_clear(best.score):
        judgement = "better than the base mix"
    elif best.score.noise is None:
        judgement = "higher than the base mix, by what no second seed confirms"
    else:
        judgement = "not better than the base mix beyond the noise"
    yield f"Best in stage {best.stage}: {describe(best)}. Its score is {signed(best.score)}, {judgement}."
    gains = [f"{metric} {signed(gain)}" for metric, gain in best.gains.items()]
    yield f"Gains over the base mix (above 0 is better): {', '.join(gains)}."
    losers = [metric for metric, gain in best.gains.items() if gain.value < 0 and _is_clear(gain)]
    if losers:
        yield f"It pays with {', '.join(losers)}, which became worse beyond the noise."
    if best.broken:
        yield f"It breaks the constraint on {', '.join(best.broken)}: no candidate keeps all of them."
    rival = next((c for c in by_id.values() if c.stage == best.stage and c.rank == 2), None)
    if rival is not None and rival.score is not None:
        yield f"Next comes {describe(rival)}, with {signed(rival.score)}."


def _contributions(results: SweepResults) -> Iterator[str]:
    """What the score loses without each source."""
    losses = [(-c.score.value, c) for c in results.candidates if c.left_out is not None and c.score is not None]
    for loss, candidate in sorted(losses, key=lambda pair: (-pair[0], pair[1].id)):
        assert candidate.score is not None
        without = signed(candidate.score)
        if not _is_clear(candidate.score):
            judgement = "what it contributes is not above the noise"
        else:
            judgement = "it helps" if loss > 0 else "it harms"
        yield f"Without {candidate.left_out} the score changes by {without}: {judgement}."


def _stage(stage: StageResult, results: SweepResults) -> Iterator[str]:
    trials = [trial for trial in results.trials if trial.stage == stage.name]
    statuses = [trial.status for trial in trials]
    counts = [f"{statuses.count(status)} {status}" for status in ("stopped", "failed") if status in statuses]
    candidates = len({trial.candidate for trial in trials})
    text = f"Stage {stage.name}: {len(trials)} trials of {candidates} candidates"
    text += f" ({', '.join(counts)})" if counts else ""
    if stage.noise is not None:
        text += f"; one trial's score varies by {stage.noise:.2%} between seeds"
    if stage.ended_by is not None:
        text += f"; it ended because {_ENDED_BY[stage.ended_by]}"
    yield text + "."


def _agreements(results: SweepResults) -> Iterator[str]:
    for one in results.agreements:
        best = "the same best" if one.same_best else "another best"
        if one.spearman is None:
            yield f"{one.first} and {one.second} have too few candidates in common to compare their ranks."
            continue
        if one.spearman >= _WELL_RANKED:
            trust = f"{one.first} is a good proxy here"
        elif one.spearman <= _BADLY_RANKED:
            trust = f"{one.first} does not predict {one.second} here"
        else:
            trust = f"{one.first} is a rough guide only"
        yield (
            f"{one.first} and {one.second} rank {one.num_candidates} candidates with a correlation of "
            f"{one.spearman:.2f} and {best}: {trust}."
        )


def _cost(results: SweepResults) -> str:
    hours = results.worker_seconds / 3600
    return (
        f"Cost: {hours:.2f} worker hours for {len(results.trials)} trials; the data was prepared once, in "
        f"{results.prepare_seconds:.0f} s."
    )
