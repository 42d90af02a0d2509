"""The network of a local cluster: a namespace a host, and one that is the switch between them.

The switch has a namespace of its own, with the bridge in it, so that this machine's firewall rules for bridges (Docker
sets some) do not reach it, and so that all links end with the namespaces. This machine sees one end of one link, by
which whatever runs outside the hosts reaches them. A host has its own address, its own loopback, its own ports, and no
way to the internet. Files are this machine's, for all.

Nothing is written down: what there is, is read from the kernel.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

OUTSIDE = "control-plane"
"""The link between the switch and this machine."""
_SWITCH = "switch"
_BRIDGE = "bridge"
_SUBNETS = [ipaddress.IPv4Network(f"10.201.{third}.0/24") for third in range(256)]
_FIRST_HOST = 10
_INTERFACE = "eth0"
_NAMESPACES = Path("/run/netns")
_END_TIMEOUT_S = 20.0


class NetworkError(RuntimeError):
    """What was asked cannot be done, and why."""


def run(*command: str) -> str:
    """Run a command to its end.

    Returns:
        What it printed.

    Raises:
        NetworkError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  no shell reads it
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def require_namespaces() -> None:
    """Raise where this user or machine cannot make network namespaces."""
    if missing := [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]:
        raise NetworkError(f"{' and '.join(missing)} not found; on Debian and Ubuntu: apt install iproute2 util-linux")
    if os.geteuid() != 0:
        raise NetworkError("only root may make network namespaces")


class Network:
    """One cluster's network.

    Args:
        name: of the cluster, a few small letters and digits, since a link's name holds 15 characters.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,10}", name):
            raise NetworkError(f"{name!r} is no name for a cluster: at most 10 small letters and digits")
        self._prefix = f"sd-{name}-"
        self._link = f"sd-{name}"

    def hosts(self) -> list[str]:
        """Of those that there are, the names, in order."""
        names = [name.removeprefix(self._prefix) for name in self._namespaces()]
        return sorted(name for name in names if name != _SWITCH)

    def create(self, hosts: Sequence[str]) -> None:
        """Make switch and hosts, and join them.

        Raises:
            NetworkError: it cannot be done; what was made so far is taken away again.
        """
        try:
            self._create(hosts)
        except NetworkError:
            self.delete()
            raise

    def _create(self, hosts: Sequence[str]) -> None:
        subnet = _free_subnet()
        for name in (_SWITCH, *hosts):
            run("ip", "netns", "add", self._namespace(name))
            self._ip(name, "link", "set", "lo", "up")
        self._ip(_SWITCH, "link", "add", _BRIDGE, "type", "bridge")
        self._ip(_SWITCH, "link", "set", _BRIDGE, "up")
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", OUTSIDE, "netns", self._namespace(_SWITCH))
        run("ip", "address", "add", f"{subnet[1]}/24", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        for index, name in enumerate(hosts):
            peer = ("peer", "name", name, "netns", self._namespace(_SWITCH))
            self._ip(name, "link", "add", _INTERFACE, "type", "veth", *peer)
            self._ip(name, "address", "add", f"{subnet[_FIRST_HOST + index]}/24", "dev", _INTERFACE)
            self._ip(name, "link", "set", _INTERFACE, "up")
        for name in (OUTSIDE, *hosts):
            self._ip(_SWITCH, "link", "set", name, "master", _BRIDGE, "up")

    def delete(self) -> None:
        """End every process on the hosts, and take the network away; safe to repeat."""
        for host in self.hosts():
            self.end_processes(host)
        if Path("/sys/class/net", self._link).exists():
            run("ip", "link", "delete", self._link)
        for namespace in self._namespaces():
            run("ip", "netns", "delete", namespace)

    def set_link(self, name: str, *, is_up: bool) -> None:
        """Plug a host, or `OUTSIDE`, into the switch, or pull it out: no packet passes, and nobody is told."""
        self._ip(_SWITCH, "link", "set", name, "up" if is_up else "down")

    def has_link(self, name: str) -> bool:
        """Whether it is plugged in."""
        [link] = json.loads(self._ip(_SWITCH, "-json", "link", "show", "dev", name))
        return "UP" in link["flags"]

    def address(self, host: str) -> str:
        """Of a host, the IPv4 address."""
        [link] = json.loads(self._ip(host, "-json", "-4", "address", "show", "dev", _INTERFACE))
        return str(link["addr_info"][0]["local"])

    def processes(self, host: str) -> list[int]:
        """Ids of all processes on a host."""
        return [int(line) for line in run("ip", "netns", "pids", self._namespace(host)).split()]

    def end_processes(self, host: str) -> None:
        """End all that runs on a host, without a chance to say farewell."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while processes := self.processes(host):
            if time.monotonic() > deadline:
                raise NetworkError(f"processes on {host} do not end: {processes}")
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def boot(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command as the first process of a host, which sees none of other hosts.

        Ray looks for clusters among all processes that it sees.
        """
        namespace = _NAMESPACES / self._namespace(host)
        return ["nsenter", f"--net={namespace}", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]

    def _namespace(self, name: str) -> str:
        return self._prefix + name

    def _namespaces(self) -> list[str]:
        return [path.name for path in _NAMESPACES.glob(f"{self._prefix}*")]

    def _ip(self, name: str, *arguments: str) -> str:
        return run("ip", "-netns", self._namespace(name), *arguments)


def _free_subnet() -> ipaddress.IPv4Network:
    """One that this machine has no way to yet; the caller lets nobody else look meanwhile."""
    routes: list[dict[str, Any]] = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [ipaddress.IPv4Network(route["dst"], strict=False) for route in routes if "/" in route["dst"]]
    for subnet in _SUBNETS:
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise NetworkError(f"no free subnet between {_SUBNETS[0]} and {_SUBNETS[-1]}")
