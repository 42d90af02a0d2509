"""How training workers on several hosts find each other: each listens at the address by which Ray knows its host.

gloo would look up the host's own name instead. Where that leads to loopback, as it does on Debian and in many virtual
machines, workers on other hosts are told 127.0.0.1 and never connect. NCCL chooses among the interfaces by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"


class ProcessGroupConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's set-up of `torch.distributed`, after a look at each host's interfaces."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Who does it."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """In a worker; whoever has set the variable on a host knows better."""
    addresses = {name: [address.address for address in found] for name, found in psutil.net_if_addrs().items()}
    interface = interface_of(ray.util.get_node_ip_address(), addresses)
    if interface is not None:
        os.environ.setdefault(_INTERFACE_VARIABLE, interface)


def interface_of(address: str, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that has an address; None where none has, as behind a translation of addresses.

    Args:
        address: looked for.
        addresses: of each interface.
    """
    return next((name for name, found in addresses.items() if address in found), None)
