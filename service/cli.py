"""The `sleddog` command."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from service.access_commands import access_app
from service.advise_commands import advise_app
from service.client.client import is_loopback
from service.client.plan_view import print_plan
from service.client.progress_view import describe_progress
from service.client.report_view import print_report
from service.client.spec_file import load_spec, plan_request
from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    JobId,
    Key,
    Priority,
    RunId,
    Url,
    cancelled_on_exit,
    clean_errors,
    connected,
    exit_on_signals,
    local_service,
    out,
    print_json,
    print_runs,
    runs_of,
)
from service.data_commands import data_app
from service.dataset_commands import datasets_app
from service.errors import InvalidSettingsError
from service.follow_commands import follow, follow_app
from service.lifecycle_commands import lifecycle_app
from service.plan.plan import plan_job
from service.queue_commands import queue_app
from service.result_commands import result_app
from service.settings import Settings
from service.spec.resources import JobStatus
from service.sweep_commands import sweep_app
from service.webhook_commands import webhook_app

app = typer.Typer(no_args_is_help=True)
app.add_typer(follow_app)
app.add_typer(queue_app)
app.add_typer(result_app)
app.add_typer(lifecycle_app)
app.add_typer(access_app)
app.add_typer(data_app, name="data")
app.add_typer(datasets_app, name="datasets")
app.add_typer(sweep_app, name="sweep")
app.add_typer(webhook_app, name="webhook")
app.add_typer(advise_app, name="advise")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="SLEDDOG_DATABASE_URL", help="postgresql://…; by default SQLite in the data directory."),
]
SpecFile = Annotated[Path, typer.Argument(help="A job's spec: YAML, TOML or JSON.")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sleddog {version('sleddog')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option(envvar="SLEDDOG_PROFILE", help="A service of ~/.config/sleddog/config.toml.")
    ] = None,
) -> None:
    """Fine-tune Mixture-of-Experts language models on a Ray cluster."""
    if profile is not None:
        os.environ["SLEDDOG_PROFILE"] = profile  # for the client that the command makes


@app.command()
@clean_errors
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8700,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(envvar="SLEDDOG_SECRET_FILE", help="Holds the secret of API keys, the same for all replicas."),
    ] = None,
    runs_url: Annotated[
        str | None, typer.Option(envvar="SLEDDOG_RUNS_URL", help="Root of the run directories, such as s3://….")
    ] = None,
    ray_dashboard_url: Annotated[
        str | None, typer.Option(envvar="SLEDDOG_RAY_DASHBOARD_URL", help="An existing cluster; else a local one.")
    ] = None,
    ray_token_path: Annotated[
        Path | None, typer.Option(envvar="SLEDDOG_RAY_TOKEN_PATH", help="File with that cluster's token.")
    ] = None,
    max_running_jobs: Annotated[int, typer.Option(min=1, help="More wait in the queue.")] = 1,
    cluster_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of an existing cluster; jobs wait until all their workers fit.")
    ] = None,
    cluster_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs of it, likewise.")] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let other machines read /metrics without a key.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM); serves HTTPS, with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    allow_uri: Annotated[
        list[str] | None, typer.Option(help="Prefix that specs may read below, such as s3://our-data/; repeatable.")
    ] = None,
    allow_private_endpoints: Annotated[
        bool | None,
        typer.Option(help="Let judges and trackers be in this network; by default if only this machine asks."),
    ] = None,
    rate_limit: Annotated[float, typer.Option(min=0, help="Requests a second of one key; 0 for any number.")] = 1000.0,
    allow_private_webhooks: Annotated[
        bool, typer.Option("--allow-private-webhooks", help="Let webhooks lead into this network, and to http://.")
    ] = False,
) -> None:
    """Run the service until Ctrl-C.

    Without --allow-uri, specs may name any file that the cluster can read: right for one user on their own machine.
    """
    from service.serve import ensure_first_key
    from service.serve import serve as serve_forever

    exit_on_signals()
    is_alone = ray_dashboard_url is None and is_loopback(f"http://{host}")
    settings = Settings(
        data_dir,
        database_url=database_url,
        secret_file=secret_file,
        runs_url=runs_url,
        ray_dashboard_url=ray_dashboard_url,
        ray_token_path=ray_token_path,
        driver_python=sys.executable if ray_dashboard_url is None else "python",
        max_running_jobs=max_running_jobs,
        cluster_gpus=cluster_gpus,
        cluster_cpus=cluster_cpus,
        open_metrics=open_metrics,
        allow_private_webhooks=allow_private_webhooks,
        allowed_uris=tuple(allow_uri or ()),
        allow_private_endpoints=is_alone if allow_private_endpoints is None else allow_private_endpoints,
        rate_limit_per_s=rate_limit,
    )
    if key := ensure_first_key(settings):
        out.print(f"API key, shown this once: [bold]{key}[/bold]", highlight=False, soft_wrap=True)
    if settings.api_key_path.exists():
        out.print(f"The first key lies in {settings.api_key_path}, for this machine's command line", highlight=False)
    serve_forever(settings, host, port, _tls(tls_cert, tls_key))


def _tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InvalidSettingsError("a certificate needs its key", "--tls-cert" if cert is None else "--tls-key")
    return cert, key


@app.command()
@clean_errors
def migrate(data_dir: DataDir = DEFAULT_DATA_DIR, database_url: DatabaseUrl = None) -> None:
    """Bring a database to this version's schema; repeating it changes nothing."""
    from service.store.engine import migrate as migrate_schema
    from service.store.engine import open_engine

    data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_engine(Settings(data_dir, database_url=database_url).resolved_database_url)
    try:
        schema = migrate_schema(engine)
    finally:
        engine.dispose()
    out.print(f"The database has schema {schema}", highlight=False)


@app.command()
@clean_errors
def run(spec_file: SpecFile, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Start a service, run one job on it to its end, print the report, and leave nothing running."""
    spec = load_spec(spec_file)
    with local_service(data_dir, out) as client:
        job = client.jobs.create(spec)
        out.print(f"Posted {spec_file} as {job.id}", highlight=False)
        with cancelled_on_exit(lambda: client.jobs.cancel(job.id)):
            follow(client, job.id, out)
        print_report(client.jobs.report(job.id), out)


@app.command()
@clean_errors
def validate(
    spec_file: SpecFile,
    remote: Annotated[
        bool, typer.Option("--remote", help="Ask the service, which also looks for the files; and print its answer.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Check a job's spec without posting it, and print it as JSON with every default filled in."""
    spec = load_spec(spec_file)
    if remote:
        with connected(url, api_key, data_dir) as client:
            print_json(client.jobs.validate(spec))
    else:
        print_json(spec)


@app.command()
@clean_errors
def plan(
    spec_file: SpecFile,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an epoch; else one step is planned, or train.max_steps.")
    ] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Conversations of an epoch.")] = None,
    hardware: Annotated[str, typer.Option(help="GPUs: h100 or h200.")] = "h100",
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs that NVLink joins.")] = 8,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU hour, in any currency.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(help="Another figure, such as assumptions.matmul_efficiency=0.5; docs/plan.md lists them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a job would need and take: memory, communication, time, cost. Needs no service and no GPU."""
    request = plan_request(
        load_spec(spec_file),
        {
            "hardware": {"name": hardware, "gpus_per_node": gpus_per_node},
            "data": {"num_tokens": tokens, "num_examples": examples},
            "price_per_gpu_hour": price,
        },
        assume or [],
    )
    planned = plan_job(request)
    print_json(planned) if as_json else print_plan(planned, out)


@app.command()
@clean_errors
def submit(
    spec_file: SpecFile,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    priority: Priority = 0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Post a job."""
    spec = load_spec(spec_file)
    with connected(url, api_key, data_dir) as client:
        job = client.jobs.create(spec, priority=priority)
        print_json(job) if as_json else out.print(job.id, highlight=False)
        if watch_it:
            follow(client, job.id, out)


@app.command()
@clean_errors
def jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest jobs to show.")] = 20,
    status: Annotated[JobStatus | None, typer.Option(help="Only those that stand so.")] = None,
    name: Annotated[str | None, typer.Option(help="Only those whose name has this in it.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List jobs, newest first."""
    with connected(url, api_key, data_dir) as client:
        page = client.jobs.list(statuses=[status] if status else None, name=name, limit=limit)
    print_json(page) if as_json else print_runs(page, describe_progress)


@app.command()
@clean_errors
def cancel(
    run_id: RunId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Cancel a job or a sweep."""
    with connected(url, api_key, data_dir) as client:
        run = runs_of(client, run_id).cancel(run_id)
    print_json(run) if as_json else out.print(run.status)


@app.command()
@clean_errors
def report(
    job_id: JobId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what a finished job did."""
    with connected(url, api_key, data_dir) as client:
        document = client.jobs.report(job_id)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        print_report(document, out)


if __name__ == "__main__":
    app()
