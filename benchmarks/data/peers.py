"""What else a user could take, if it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Generic, NamedTuple, TypeVar

Contender = TypeVar("Contender", bound=Callable[..., object])


class Peer(NamedTuple, Generic[Contender]):
    """A contender and the package that it needs."""

    run: Contender
    package: str


def installed(peers: Mapping[str, Peer[Contender]], names: list[str]) -> dict[str, Contender]:
    """Those of the named peers that are here; says of each other how to get it."""
    for name in names:
        if find_spec(peers[name].package) is None:
            print(f"{name} is left out: package {peers[name].package} is missing; `make bench-peers` installs it")
    return {name: peers[name].run for name in names if find_spec(peers[name].package)}
