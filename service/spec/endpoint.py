"""A language model behind an HTTP endpoint, and how to ask it."""

from __future__ import annotations

from pydantic import Field

from service.spec.base import SpecModel


class EndpointSpec(SpecModel):
    """Any endpoint that speaks OpenAI's chat completions."""

    base_url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    """Of the API, up to `/chat/completions`: `http://localhost:8000/v1`."""
    model: str = Field(min_length=1)
    """Name of the model there."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]{0,63}$")
    """Name of the environment variable that holds the key, on the cluster's nodes; never the key."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Of the sampling."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for one answer."""
    max_retries: int = Field(default=5, ge=0, le=20)
    """Tries after the first, when the endpoint is busy, down or out of reach."""
    num_parallel: int = Field(default=8, ge=1, le=64)
    """Requests at a time."""
