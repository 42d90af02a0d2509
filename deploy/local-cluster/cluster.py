"""Several hosts on one machine, for trying what happens when one of them is lost.

    python deploy/local-cluster/cluster.py up

See `docs/guides/several-hosts.md`. Every command may be repeated: it does what is left to do.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from hosts import HEAD, Hosts
from network import OUTSIDE, Network, NetworkError, require_namespaces
from rich.console import Console
from rich.table import Table

Name = Annotated[str, typer.Option("--name", envvar="SLEDDOG_CLUSTER", help="Which cluster; each has its own network.")]
Host = Annotated[str, typer.Argument(help="As `status` lists it.")]
DEFAULT_NAME = "local"

app = typer.Typer(no_args_is_help=True, help="A Ray cluster of several hosts on one machine, any of which may be lost.")


def command(work: Callable[..., None]) -> Callable[..., None]:
    """Make it a command; an expected error is one clear line."""

    @wraps(work)
    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            require_namespaces()
            work(*args, **kwargs)
        except NetworkError as error:
            typer.echo(f"cluster: {error}", err=True)
            raise typer.Exit(1) from None

    app.command()(checked)
    return checked


@contextmanager
def alone() -> Iterator[None]:
    """Nobody else on this machine sets up or changes a cluster meanwhile."""
    directory = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def opened(name: str, *needed: str) -> tuple[Network, Hosts]:
    """A cluster that is up, and has what is needed.

    Raises:
        NetworkError: it is not, or has not.
    """
    network = Network(name)
    if HEAD not in (hosts := network.hosts()):
        raise NetworkError(f"there is no cluster {name!r}; `up` makes it")
    for host in needed:
        if host not in (*hosts, OUTSIDE):
            raise NetworkError(f"there is no host {host!r}, but {', '.join(hosts)}; and {OUTSIDE}")
    return network, Hosts(name, network)


def revive(network: Network, hosts: Hosts, names: list[str]) -> None:
    """Start Ray where it has ended, or is no longer part of the cluster, and wait for it."""
    if not network.processes(HEAD):
        if HEAD not in names:
            raise NetworkError("the head has been killed; `heal head` starts it, and `up` all that it no longer knows")
        hosts.start_ray(HEAD)
    hosts.await_ray([HEAD])
    alive = hosts.nodes() or {}
    for name in names:
        if name != HEAD and not (name in alive and network.processes(name)):
            network.end_processes(name)
            hosts.start_ray(name)
    hosts.await_ray(names)


@command
def up(
    name: Name = DEFAULT_NAME, workers: Annotated[int, typer.Option(min=1, max=9, help="Hosts beside the head.")] = 3
) -> None:
    """Make the hosts, start Ray on them, and wait until it takes jobs."""
    network = Network(name)
    hosts = Hosts(name, network)
    with alone():
        if not network.hosts():
            network.create([HEAD, *(f"host{number}" for number in range(1, workers + 1))])
        hosts.make_directory()
    revive(network, hosts, network.hosts())
    print_status(network, hosts)


@command
def down(name: Name = DEFAULT_NAME) -> None:
    """End all of it, and leave nothing."""
    network = Network(name)
    with alone():
        network.delete()
        Hosts(name, network).remove_directory()


@command
def env(name: Name = DEFAULT_NAME) -> None:
    """Print the variables by which `sleddog serve` uses the cluster; for `eval "$(… env)"`."""
    _, hosts = opened(name)
    typer.echo(f"export SLEDDOG_RAY_DASHBOARD_URL={hosts.dashboard_url}")
    typer.echo(f"export SLEDDOG_RAY_TOKEN_PATH={hosts.token_path}")


@command
def status(name: Name = DEFAULT_NAME) -> None:
    """Show each host: its address, its link, what the head thinks of it, and whether it trains."""
    print_status(*opened(name))


@command
def training(name: Name = DEFAULT_NAME) -> None:
    """Print the hosts that training workers run on, one a line."""
    network, hosts = opened(name)
    for host in network.hosts():
        if hosts.num_training_workers(host):
            typer.echo(host)


@command
def cut(host: Host, name: Name = DEFAULT_NAME) -> None:
    """Pull a host's network cable; `control-plane` is this machine's way to all hosts."""
    network, _ = opened(name, host)
    network.set_link(host, is_up=False)


@command
def kill(host: Host, name: Name = DEFAULT_NAME) -> None:
    """End every process on a host at once."""
    network, _ = opened(name, host)
    if host == OUTSIDE:
        raise NetworkError(f"{OUTSIDE} is a link, which can be cut; the service's process is yours")
    network.end_processes(host)


@command
def heal(host: Host, name: Name = DEFAULT_NAME) -> None:
    """Plug it in again; where Ray has ended or was given up, start it anew and wait until it has joined."""
    network, hosts = opened(name, host)
    network.set_link(host, is_up=True)
    if host != OUTSIDE:
        revive(network, hosts, [host])


def print_status(network: Network, hosts: Hosts) -> None:
    """A line a host."""
    nodes = hosts.nodes()
    table = Table("host", "address", "link", "Ray", "training workers")
    for host in network.hosts():
        link = "up" if network.has_link(host) else "cut"
        ray = "unknown" if nodes is None else "alive" if host in nodes else "lost"
        workers = hosts.num_training_workers(host)
        table.add_row(host, network.address(host), link, ray, str(workers) if workers else "")
    Console(highlight=False).print(table)
    if not network.has_link(OUTSIDE):
        typer.echo(f"The link of {OUTSIDE} is cut")


if __name__ == "__main__":
    app()
