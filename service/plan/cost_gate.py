"""Whether a job or a sweep is so dear that somebody must approve it first."""

from __future__ import annotations

from service.plan.plan import plan_job
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest
from service.spec.sweep import StageSpec, SweepSpec, changed


def approval_reason(spec: JobSpec | SweepSpec, max_gpu_hours: float | None) -> str | None:
    """Why it needs an approval; None when it needs none.

    Args:
        spec: what is asked.
        max_gpu_hours: that a plan may foresee; None is no limit. What no plan can tell is above every limit.
    """
    if max_gpu_hours is None:
        return None
    hours = planned_gpu_hours(spec)
    if hours is None:
        return (
            f"nothing tells how long it runs (`train.max_steps` would), and above {max_gpu_hours:g} GPU hours an admin "
            "must approve it"
        )
    if hours <= max_gpu_hours:
        return None
    return f"it is planned to take {hours:.3g} GPU hours; above {max_gpu_hours:g} an admin must approve it"


def planned_gpu_hours(spec: JobSpec | SweepSpec) -> float | None:
    """By the plan, on its default hardware; of a sweep of all the trials that it may run. None when nothing tells."""
    if isinstance(spec, JobSpec):
        planned = plan_job(PlanRequest(job=spec)).run
        return None if planned is None else planned.gpu_hours
    return sum(_trial_gpu_hours(spec, stage) * spec.most_trials(number) for number, stage in enumerate(spec.stages))


def _trial_gpu_hours(spec: SweepSpec, stage: StageSpec) -> float:
    job = changed(spec.base, stage.changes)
    job = changed(job, {"train.max_steps": stage.num_steps(job)})
    planned = plan_job(PlanRequest(job=job)).run
    assert planned is not None, "the number of steps is given"
    return planned.gpu_hours
