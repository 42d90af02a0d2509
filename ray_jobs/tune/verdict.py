"""What a sweep found, in sentences with their numbers, each by a rule that is stated here.

A difference is clear when it exceeds two standard errors, and more where few seeds tell the noise: with the two degrees
of freedom of three seeds 4.5 (Student's t). The best of several candidates is there by luck, too, so it must exceed
what the luckiest of so many would reach by noise alone. What is not clear is called equal. Without a standard error, as
with one seed everywhere, nothing is called better, only higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ray_jobs.tune.objective import Noise
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, EndedBy, Estimate, StageResult, SweepResults

_WELL_RANKED, _BADLY_RANKED = 0.7, 0.3
"""Rank correlations from which a proxy is called a good and a bad judge."""
_KNOWN_NOISE_ERRORS = 2.0
"""Standard errors that would be clear of one candidate, if the noise were known; a reader may expect them to be."""
_CHANCE = 0.05
"""Up to which a rank correlation is not put down to chance: with three candidates none is, with four a perfect one."""
_ENDED_BY: dict[EndedBy, str] = {
    "rounds": "its rounds were used up",
    "no_gain": "two rounds brought no gain beyond the noise, or one while none was expected",
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
        sentences += _contributions(spec, results)
    elif results.best is not None:
        sentences += _best(by_id[results.best], results)
    elif any(stage.ended_by == "baseline_failed" for stage in results.stages):
        sentences.append("Nothing was found, for there is nothing to compare candidates with.")
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


def _best(best: Candidate, results: SweepResults) -> Iterator[str]:
    assert best.score is not None, "the best has a score"
    stage = next(stage for stage in results.stages if stage.name == best.stage)
    others = [one for one in results.candidates if one.stage == best.stage and one.role != "base" and one.score]
    if best.role == "base" or best.score.value <= 0:
        yield f"In stage {best.stage} nothing that may be chosen scored above the base mix: keep it."
        yield from _broken(best, others)
        return
    clear_errors = Noise(degrees=stage.noise_degrees).clear_errors(len(others))
    if best.score.exceeds(clear_errors):
        judgement = "better than the base mix"
    elif best.score.noise is None:
        judgement = "higher than the base mix, by what no second seed confirms"
    else:
        judgement = "not better than the base mix beyond the noise"
        if best.score.exceeds(_KNOWN_NOISE_ERRORS):
            judgement += f": of {len(others)} candidates and so few seeds, {clear_errors:.1f} standard errors would be"
    yield f"Best in stage {best.stage}: {describe(best)}. Its score is {signed(best.score)}, {judgement}."
    gains = [f"{metric} {signed(gain)}" for metric, gain in best.gains.items()]
    yield f"Gains over the base mix (above 0 is better): {', '.join(gains)}."
    losers = [metric for metric, gain in best.gains.items() if gain.value < 0 and gain.exceeds(stage.clear_errors)]
    if losers:
        yield f"It pays with {', '.join(losers)}, which became worse beyond the noise."
    rival = next((c for c in results.candidates if c.stage == best.stage and c.rank == 2), None)
    if rival is not None and rival.score is not None and not rival.broken:
        yield f"Next comes {describe(rival)}, with {signed(rival.score)}."
    yield from _broken(best, others)


def _broken(best: Candidate, others: list[Candidate]) -> Iterator[str]:
    """What would have been better, if it were allowed."""
    assert best.score is not None, "the best has a score"
    above = [
        (one.score.value, one) for one in others if one.broken and one.score and one.score.value > best.score.value
    ]
    if above:
        _, highest = max(above, key=lambda pair: pair[0])
        assert highest.score is not None, "it is above another one's"
        yield (
            f"Candidates that scored above it but break a constraint: {len(above)}. Of these highest is "
            f"{describe(highest)}, with {signed(highest.score)}; it breaks that on {', '.join(highest.broken)}."
        )


def _contributions(spec: SweepSpec, results: SweepResults) -> Iterator[str]:
    """What the score loses without each source."""
    clear_errors = results.stages[0].clear_errors
    losses = [(-c.score.value, c) for c in results.candidates if c.left_out is not None and c.score is not None]
    for loss, candidate in sorted(losses, key=lambda pair: (-pair[0], pair[1].id)):
        assert candidate.score is not None
        without = signed(candidate.score)
        if not candidate.score.exceeds(clear_errors):
            judgement = "what it contributes is not above the noise"
        else:
            judgement = "it helps" if loss > 0 else "it harms"
        yield f"Without {candidate.left_out} the score changes by {without}: {judgement}."
    tried = {candidate.left_out for candidate in results.candidates}
    data = spec.base.data
    untried = [source.name for source in data.sources if source.name not in {*data.leave_out, *tried}]
    if untried:
        yield f"Not tried, for max_trials left no room: {', '.join(untried)}."


def _stage(stage: StageResult, results: SweepResults) -> Iterator[str]:
    trials = [trial for trial in results.trials if trial.stage == stage.name]
    statuses = [trial.status for trial in trials]
    counts = [f"{statuses.count(status)} {status}" for status in ("stopped", "failed") if status in statuses]
    candidates = len({trial.candidate for trial in trials})
    text = f"Stage {stage.name}: {len(trials)} trials of {candidates} candidates"
    text += f" ({', '.join(counts)})" if counts else ""
    if stage.noise is not None:
        text += f"; one trial's score varies by {stage.noise:.2%} between seeds"
        text += f" (degrees of freedom: {stage.noise_degrees})"
    if stage.ended_by is not None:
        text += f"; it ended because {_ENDED_BY[stage.ended_by]}"
    yield text + "."
    foretold = [
        (one.predicted, one.score)
        for one in results.candidates
        if one.stage == stage.name and one.predicted is not None and one.score is not None
    ]
    if foretold:
        errors = [(score.value - told.value, told.noise or 0.0, score.noise or 0.0) for told, score in foretold]
        error = math.sqrt(sum(error**2 for error, _, _ in errors) / len(errors))
        within = sum(abs(error) <= 2 * math.hypot(*of_both) for error, *of_both in errors)
        yield (
            f"Before they ran, the surrogate foretold the scores of {len(foretold)} candidates with an error of "
            f"{error:.2%} (root mean square); {within} came within two of its standard deviations."
        )


def _agreements(results: SweepResults) -> Iterator[str]:
    for one in results.agreements:
        best = "the same best" if one.same_best else "another best"
        if one.spearman is None:
            yield f"{one.first} and {one.second} have too few candidates in common to compare ranks, or too alike."
            continue
        is_chance = one.chance is not None and one.chance > _CHANCE
        if one.spearman >= _WELL_RANKED and is_chance:
            trust = f"{one.first} may be a good proxy, but {one.chance:.0%} of all orders agree as well by chance"
        elif one.spearman >= _WELL_RANKED:
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
