"""Who was let in is remembered for a moment, by what only reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from service.api.dependencies import ControlPlane
from service.api.principals import LIFETIME_S, Principals
from service.store.principal import Principal
from service.store.store import Store

SOMEBODY = Principal("key", "user", "project", "viewer", frozenset({"read"}))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_somebody_is_remembered_for_a_moment() -> None:
    clock = Clock()
    principals = Principals(clock)
    principals.remember("sd-a", SOMEBODY, principals.now())
    assert principals.find("sd-b") is None
    clock.now = LIFETIME_S - 0.01
    assert principals.find("sd-a") == SOMEBODY
    clock.now = LIFETIME_S
    assert principals.find("sd-a") is None


def test_what_was_asked_before_all_was_forgotten_stays_forgotten() -> None:
    clock = Clock()
    principals = Principals(clock)
    asked_at = principals.now()
    clock.now = 0.1
    principals.forget()
    principals.remember("sd-a", SOMEBODY, asked_at)
    assert principals.find("sd-a") is None
    clock.now = 0.2
    principals.remember("sd-a", SOMEBODY, principals.now())
    assert principals.find("sd-a") == SOMEBODY


@pytest.fixture
def lookups(parts: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Actions for which the store was asked who a key belongs to."""
    asked: list[str] = []
    authenticate: Callable[..., Principal] = parts.store.authenticate

    def noting(text: str, origin: object = None) -> Principal:
        asked.append(getattr(origin, "action", ""))
        return authenticate(text, origin)

    monkeypatch.setattr(parts.store, "authenticate", noting)
    return asked


def test_polling_asks_the_store_once_and_writing_each_time(
    http: TestClient, parts: ControlPlane, store: Store, key: str, lookups: list[str]
) -> None:
    clock = Clock()
    parts.__dict__["principals"] = Principals(clock)
    for _ in range(5):
        assert http.get("/v1/jobs").status_code == 200
    assert lookups == ["list_jobs"]
    made = http.post("/v1/keys", json={"name": "a"}).json()
    assert lookups == ["list_jobs", "create_key"]
    clock.now += 0.001
    as_made = {"Authorization": f"Bearer {made['secret']}"}
    assert http.get("/v1/jobs", headers=as_made).status_code == 200
    assert http.post(f"/v1/keys/{made['id']}/revoke").status_code == 200
    clock.now += 0.001
    assert http.get("/v1/jobs", headers=as_made).status_code == 401, "nothing is remembered of it"
