"""Which service a client speaks to, and with which key; and how it waits for one that is busy."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import calls
from service.client.client import AsyncClient, Client
from service.client.profile import config_path, find_connection
from service.errors import InvalidSettingsError, NotAuthenticatedError, ServiceUnreachableError
from service.spec.job import JobSpec

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def config(apart: None) -> Path:
    """A config file with two profiles, of which `team` is the default."""
    path = config_path()
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    (path.parent / "team-key").write_text("sd-team\n")
    path.write_text(
        f"""profile = "team"
[profiles.team]
url = "https://team.example"
api_key_file = "{path.parent}/team-key"
[profiles.own]
url = "http://127.0.0.1:9999"
api_key = "sd-own"
"""
    )
    return path


@pytest.mark.usefixtures("config")
def test_arguments_come_before_the_environment_and_that_before_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*arguments: str | None) -> tuple[str, str | None]:
        connection = find_connection(*arguments)  # type: ignore[arg-type]
        return connection.url, connection.api_key

    assert found(None, None) == ("https://team.example", "sd-team")
    assert found(None, None, "own") == ("http://127.0.0.1:9999", "sd-own")
    assert found(None, "mine") == ("https://team.example", "mine")
    assert found("https://team.example/", None) == ("https://team.example/", "sd-team")
    monkeypatch.setenv("SLEDDOG_PROFILE", "own")
    assert found(None, None) == ("http://127.0.0.1:9999", "sd-own")
    assert found(None, None, "team")[0] == "https://team.example"
    monkeypatch.setenv("SLEDDOG_API_KEY", "env")
    assert found(None, None) == ("http://127.0.0.1:9999", "env")
    monkeypatch.setenv("SLEDDOG_URL", "http://elsewhere.example")
    assert found(None, None) == ("http://elsewhere.example", "env")


@pytest.mark.usefixtures("config")
def test_a_profiles_key_is_shown_to_no_other_service() -> None:
    assert find_connection("https://other.example", None).api_key is None
    with pytest.raises(NotAuthenticatedError, match="no API key"):
        Client("https://other.example")


def test_without_a_config_file_this_machine_is_meant() -> None:
    assert find_connection(None, None).url == "http://127.0.0.1:8700"
    with pytest.raises(InvalidSettingsError, match="has no profile 'team'; it has none"):
        find_connection(None, None, "team")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("profile = ", "is no TOML"),
        ("[profiles.a]\nkey = 1", r"profiles\.a\.url: .*profiles\.a\.key: unknown field"),
        ('profile = "b"\n[profiles.a]\nurl = "http://a"', "has no profile 'b'; it has a"),
    ],
)
def test_a_config_file_that_is_wrong_is_said_to_be(config: Path, content: str, message: str) -> None:
    config.write_text(content)
    with pytest.raises(InvalidSettingsError, match=message):
        find_connection(None, None)


def test_a_key_that_others_can_read_is_not_used(config: Path) -> None:
    config.chmod(0o644)
    with pytest.raises(InvalidSettingsError, match="chmod 600"):
        find_connection(None, None)


def test_the_command_takes_a_profile(url: str, key: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEDDOG_PROFILE", "team")  # so that it is set back
    config.write_text(
        f'[profiles.here]\nurl = "{url}"\napi_key = "{key}"\n[profiles.team]\nurl = "http://127.0.0.1:9"\n'
    )
    found = CliRunner().invoke(app, ["--profile", "here", "jobs", "--json"])
    assert found.exit_code == 0, found.output
    assert CliRunner().invoke(app, ["--profile", "nope", "jobs"]).exit_code == 1


class Busy(httpx.HTTPTransport):
    """The real way to the service, which is first told to wait."""

    def __init__(self, wish: str) -> None:
        super().__init__()
        self.wish, self.num_requests = wish, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.num_requests += 1
        if self.num_requests == 1:
            return httpx.Response(429, headers={"Retry-After": self.wish}, text="busy")
        return super().handle_request(request)


def test_a_busy_service_is_given_the_time_that_it_asks_for(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("service.client.client.time.sleep", waited.append)
    with Client(url, key, transport=Busy("7")) as client:
        assert client.jobs.list().data == []
    assert waited == [7.0]
    transport = Busy("3600")
    with Client(url, key, transport=transport) as client, pytest.raises(ServiceUnreachableError, match="429: busy"):
        client.jobs.list()
    assert transport.num_requests == 1, "an hour is the caller's to wait"


def test_a_wish_is_seconds_or_a_date() -> None:
    def wish(value: str) -> float:
        return calls.retry_after_s(httpx.Response(503, headers={"Retry-After": value}))

    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < wish(format_datetime(soon, usegmt=True)) <= 30
    assert wish(format_datetime(soon - timedelta(hours=1), usegmt=True)) == 0
    assert (wish("5"), wish("soon"), wish("-1"), calls.retry_after_s(httpx.Response(503))) == (5, 0, 0, 0)


def test_all_jobs_are_listed_over_pages(
    url: str, key: str, client: Client, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [client.jobs.create(spec).id for _ in range(5)]
    monkeypatch.setattr("service.client.runs.PAGE", 2)
    assert [job.id for job in client.jobs.list_all()] == made[::-1]
    assert list(client.jobs.list_all(statuses=["failed"])) == []

    async def ask() -> list[str]:
        async with AsyncClient(url, key) as awaited:
            return [job.id async for job in awaited.jobs.list_all()]

    assert asyncio.run(ask()) == made[::-1]
