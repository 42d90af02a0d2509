"""What a finished run spent beside its steps: waiting for rows, standing still for checkpoints, proving itself.

    python benchmarks/train/run_overheads.py RUN_URL

Read from the run's own events. A checkpoint's stall is the time from the end of its step to the beginning of the next
one, the copy of weights and moments included; the shard is written beside the steps that follow.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from statistics import median

from ray_jobs.report import read_events
from ray_jobs.run_directory import RunDirectory
from service.spec.event import Event


def seconds_between(steps: list[Event]) -> dict[int, float]:
    """Seconds after each step in which no step was at work, by the step's number."""
    return {
        one.data["step"]: (other.time - one.time).total_seconds() - other.data["step_s"]  # type: ignore[misc, operator]
        for one, other in pairwise(steps)
    }


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_url", help="directory of a run that was never restarted")
    events = sorted(read_events(RunDirectory(parser.parse_args().run_url)), key=lambda event: event.time)
    steps = [event for event in events if event.type == "train.step"]
    saved = {event.data["step"] for event in events if event.type == "checkpoint.saved"}
    step_s = median(event.data["step_s"] for event in steps)  # type: ignore[type-var]
    waits = [event.data["data_wait_s"] for event in steps]
    gaps = seconds_between(steps)
    stalls = [gap for step, gap in gaps.items() if step in saved]
    others = [gap for step, gap in gaps.items() if step not in saved]
    [started] = [event.time for event in events if event.type == "train.started"]
    proved = next(event.time for event in events if event.type == "train.proofs")
    print(f"{len(steps)} steps, median {step_s:.3f} s")
    print(f"waiting for rows: {sum(waits) / len(steps) / step_s:.3%} of the steps")  # type: ignore[arg-type, operator]
    print(f"standing still for a checkpoint: {', '.join(f'{stall / step_s:.1%}' for stall in stalls)} of a step")
    print(f"between other steps: {median(others) / step_s:.3%} of a step, median")
    print(f"proofs before the first step: {(proved - started).total_seconds():.1f} s")


if __name__ == "__main__":
    main()
