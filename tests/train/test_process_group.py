"""Where training workers listen for each other. Several hosts: `tests/system/test_several_hosts.py`."""

from __future__ import annotations

import pytest

from ray_jobs.train.process_group import interface_of

ADDRESSES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7", "fe80::1%eth0"], "ib0": ["192.168.5.7", "fd00::7"]}


@pytest.mark.parametrize(
    ("address", "interface"),
    [("10.0.0.7", "eth0"), ("127.0.0.1", "lo"), ("fd00::7", "ib0"), ("10.0.0.70", None), ("203.0.113.9", None)],
)
def test_workers_listen_where_ray_knows_their_host(address: str, interface: str | None) -> None:
    assert interface_of(address, ADDRESSES) == interface
