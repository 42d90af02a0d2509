"""Where a run's metrics are told of, beside its own events.

No secrets: what a tracking server asks for, such as `MLFLOW_TRACKING_TOKEN` or `WANDB_API_KEY`, stands in the
environment of the cluster.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from service.spec.base import SpecModel


def _without_secret(uri: str) -> str:
    if urlsplit(uri).username is not None:
        raise ValueError("holds a name or a password: give them in the environment of the cluster")
    return uri


class MlflowSpec(SpecModel):
    """A run of MLflow, found again by the job's id after a restart. Needs `sleddog[mlflow]` on the cluster."""

    tracking_uri: Annotated[str, AfterValidator(_without_secret)] | None = None
    """Of the tracking server; by default `MLFLOW_TRACKING_URI` of the cluster's environment."""
    experiment: str = Field(default="sleddog", min_length=1)
    """Is created when there is none of that name."""
    run_name: str | None = Field(default=None, min_length=1)
    """By default the job's name."""


class WandbSpec(SpecModel):
    """A run of Weights & Biases, whose id is the job's. Needs `sleddog[wandb]` on the cluster."""

    project: str = Field(default="sleddog", min_length=1)
    entity: str | None = Field(default=None, min_length=1)
    """A user or a team; by default that of the API key."""
    mode: Literal["online", "offline"] = "online"
    """Offline leaves the files in the run directory's `wandb/`, for `wandb sync`."""


class TrackSpec(SpecModel):
    """Trackers of experiments. One that fails while the job runs is warned of and left out; the job goes on."""

    tensorboard: bool = True
    """Write TensorBoard's event files, to the run directory's `tensorboard/`."""
    mlflow: MlflowSpec | None = None
    wandb: WandbSpec | None = None
