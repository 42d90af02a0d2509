"""What a sweep costs: n trials that share the cluster, beside n times one trial alone and one preparation.

    python benchmarks/tune/trial_cost.py examples/sweep.yaml [--trials 8]

Two sweeps of the spec's first stage, each in a service of its own with nothing prepared: one of three trials that run
one at a time, which tells what a trial takes that has the cluster to itself, and one of as many as asked, at once where
the cluster has room. Time is the cluster's: from the driver's start to its end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from service.client.spec_file import load_sweep
from service.command_line import err, local_service
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import SweepResults

TRIALS_ALONE = 3


def first_stage(spec: SweepSpec, trials: int, at_a_time: int | None) -> SweepSpec:
    """The sweep of one round of the first stage: the base mix twice, and as many more candidates as make the number."""
    stage = spec.stages[0].model_copy(update={"candidates": trials - 1, "rounds": 1, "baseline_seeds": 2, "seeds": 1})
    return spec.model_copy(update={"stages": (stage,), "max_concurrent_trials": at_a_time})


def run(spec: SweepSpec) -> tuple[float, SweepResults]:
    """Seconds that it held the cluster, and what it found."""
    with tempfile.TemporaryDirectory() as name, local_service(Path(name), err) as client:
        sweep = client.sweeps.create(spec)
        ended = sweep.wait()
        return (ended.finished_at - ended.started_at).total_seconds(), sweep.results()


def described(whole_s: float, results: SweepResults) -> str:
    """A sweep's times."""
    trial_s = median(trial.duration_s for trial in results.trials)
    return (
        f"{len(results.trials)} trials in {whole_s:.0f} s, {trial_s:.1f} s each, data {results.prepare_seconds:.1f} s"
    )


def main() -> None:
    """Print both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    spec = load_sweep(options.spec)
    whole_s, alone = run(first_stage(spec, TRIALS_ALONE, at_a_time=1))
    trial_s = median(trial.duration_s for trial in alone.trials)
    print(f"one at a time: {described(whole_s, alone)}", flush=True)
    whole_s, together = run(first_stage(spec, options.trials, at_a_time=None))
    print(f"sharing the cluster: {described(whole_s, together)}")
    bound_s = len(together.trials) * trial_s + together.prepare_seconds
    print(f"{len(together.trials)} times one alone, and a preparation: {bound_s:.0f} s")
    print(f"sharing took {whole_s / bound_s:.2f} of it")


if __name__ == "__main__":
    main()
