"""Several hosts for real: the commands of `docs/guides/several-hosts.md`, as they stand there, and what comes of them.

Hosts are network namespaces of this machine, so root is needed. The guide's job is long enough to be watched by a
person; here it has fewer steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.system.several_hosts import NUM_STEPS, Reader, reading, tool

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def why_not() -> str | None:
    """Why there can be no network namespaces; None if there can."""
    if missing := [program for program in ("ip", "nsenter", "unshare", "curl") if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed: see `make system-packages`"
    probe = f"sd-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no network namespaces can be made here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with reading(tmp_path) as reader:
        yield reader


def traces(name: str) -> list[str]:
    """What there is of a cluster: namespaces, links, processes, directories."""
    listed = [
        *subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines(),
        *os.listdir("/sys/class/net"),
    ]
    found = [line for line in listed if line == f"sd-{name}" or line.startswith(f"sd-{name}-")]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/sd-{name}/" in command:
            found.append(command)
    return found + [str(path) for path in Path("/tmp").glob(f"sd-{name}*")]


def row(status: str, host: str) -> list[str]:
    """A line of `status`: address, link, Ray, training workers."""
    [line] = [line for line in status.splitlines() if line.startswith(f"│ {host} ")]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_the_guide_loses_hosts_and_no_work(reader: Reader) -> None:
    status = reader.follow("cluster up")
    addresses = {row(status, host)[0] for host in ("head", "host1", "host2", "host3")}
    assert len(addresses) == 4
    assert len(traces(reader.cluster)) > 5 + 1 + 4, "namespaces, a link, Ray on each host"
    status = reader.follow("cluster status")
    hosts = [host for host in ("host1", "host2", "host3") if row(status, host)[-1] == "1"]
    assert len(hosts) == 2, "each worker is on a host of its own"
    reader.follow('cluster cut "$LOST"')
    status = reader.follow("cluster cut control-plane")
    assert row(status, hosts[0])[1] == "cut"
    assert row(status, hosts[1])[1:3] == ["up", "unknown"], "nobody can be asked"
    reader.follow('cluster heal "$LOST"')
    assert row(reader.shell.run("cluster status"), hosts[0])[1:] == ["up", "alive", ""]
    reader.follow("cluster kill")
    reader.follow("sleddog report")
    with reader.client() as client:
        [job] = client.jobs.list().data
        events = [event.model_dump() for event in client.jobs.stream_events(job.id)]
        assert (job.status, job.attempt) == ("succeeded", 1), "the service did not take silence for an end"
        assert_each_step_was_done(events, client.jobs.report(job.id)["train"])
        marks = sorted(os.listdir(Path(job.run_url) / "attempts"))
        assert marks == ["1", "1-1", "1-2", "1-3"], "one driver was started, and its workers three times"
    reader.follow("cluster down")
    assert not reader.blocks, "the guide was followed to its end"
    assert traces(reader.cluster) == []


def assert_each_step_was_done(events: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """From the first to the last, and again only those after a checkpoint that the workers started from."""
    starts = [event["data"] for event in events if event["type"] == "train.started"]
    assert len(starts) == 3
    assert [start["start_step"] % 10 for start in starts] == [0, 0, 0], "from checkpoints"
    assert starts[0]["start_step"] == 0 < starts[1]["start_step"] <= starts[2]["start_step"]
    assert all(len({worker["node_id"] for worker in start["workers"]}) == 2 for start in starts)
    taken: list[int] = []
    for event in events:
        if event["type"] == "train.started":
            assert event["data"]["start_step"] <= len(taken), "no step was passed over"
            taken = taken[: event["data"]["start_step"]]
        elif event["type"] == "train.step":
            taken.append(event["data"]["step"])
    assert taken == list(range(1, NUM_STEPS + 1))
    assert (report["steps"], report["restarts"]) == (NUM_STEPS, 2)
    assert json.dumps(report["warnings"]).count("workers_restarted") == 2


def told(*starts: int, stops: tuple[int, ...]) -> list[dict[str, Any]]:
    """Events of workers that start from some steps, and are lost after others."""
    events: list[dict[str, Any]] = []
    for start, stop in zip(starts, stops, strict=True):
        workers = [{"node_id": "a"}, {"node_id": "b"}]
        events.append({"type": "train.started", "data": {"start_step": start, "workers": workers}})
        events += [{"type": "train.step", "data": {"step": step}} for step in range(start + 1, stop + 1)]
    return events


def test_a_step_that_is_missing_or_done_out_of_turn_is_seen() -> None:
    restarted = [{"kind": "workers_restarted"}] * 2
    report = {"steps": NUM_STEPS, "restarts": 2, "warnings": restarted}
    right = told(0, 20, 40, stops=(25, 48, NUM_STEPS))
    assert_each_step_was_done(right, report)
    one_host = deepcopy(right)
    one_host[0]["data"]["workers"][1]["node_id"] = "a"
    twice = [*right[:5], *right[4:]]
    passed_over = told(0, 30, 40, stops=(25, 48, NUM_STEPS))
    from_the_start = told(0, 0, 0, stops=(25, 48, NUM_STEPS))
    two_groups_at_once = [*right, {"type": "train.step", "data": {"step": 26}}]
    for wrong in (right[:-1], right[:5] + right[6:], twice, passed_over, from_the_start, one_host, two_groups_at_once):
        with pytest.raises(AssertionError):
            assert_each_step_was_done(wrong, report)
    with pytest.raises(AssertionError):
        assert_each_step_was_done(right, report | {"restarts": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cut", "host1"], "there is no cluster"),
        (["status"], "there is no cluster"),
        (["up", "--name", "Too-Long-A-Name"], "is no name for a cluster"),
    ],
)
def test_the_tool_says_what_it_cannot_do(arguments: list[str], message: str) -> None:
    done = tool(*arguments, *(() if "--name" in arguments else ("--name", f"n{os.getpid()}")))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_taking_away_what_is_not_there_is_no_fault() -> None:
    assert tool("down", "--name", f"n{os.getpid()}").returncode == 0
