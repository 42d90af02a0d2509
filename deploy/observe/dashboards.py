"""What the five dashboards show, and the command that writes their JSON.

    python -m deploy.observe.dashboards

Each panel answers one question, which its description asks. Change panels here, not in the JSON: a test compares them.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.observe.panels import JOB_LEGEND, OF_JOB, Dashboard, Panel, Query, Row, job_query, of_job, render

DIRECTORY = Path(__file__).parent / "grafana" / "dashboards"
_RATE = "[$__rate_interval]"

JOBS = Dashboard(
    "sleddog-jobs",
    "Sleddog: jobs",
    "What runs, what waits, and what has failed.",
    ("project", "job"),
    [
        Row(
            "All",
            [
                Panel("Runs", "How many jobs and sweeps stand how?", [
                    Query("sum by (kind, status) (max by (kind, status) (sleddog_runs))", "{{kind}} {{status}}"),
                ], kind="bargauge"),
                Panel("Waiting", "How long is each project's queue?", [
                    Query('max by (project) (sleddog_queue_length{project=~"$project"})', "{{project}}"),
                ], is_stacked=True),
                Panel("Oldest wait", "How long has the first of each queue waited, since it was posted or last ran?", [
                    Query('max by (project) (sleddog_queue_oldest_wait_seconds{project=~"$project"})', "{{project}}"),
                ], "s", warn_above=4 * 3600),
                Panel("Failed in the last hour", "Who can mend what has failed?", [
                    Query("sum by (fault) (increase(sleddog_runs_failed_total[1h]))", "{{fault}}"),
                ], kind="bargauge"),
            ],
        ),
        Row(
            "Running",
            [
                Panel("Stage", "In which stage is each job, and how often was its driver started?", [
                    Query(of_job("info", "stage", "project"), ""), Query(of_job("attempt"), ""),
                ], kind="table"),
                Panel("Task", "How far is the stage's task?", [job_query("task_done_ratio")],
                      "percentunit", kind="bargauge"),
                Panel("Time to go", "When does the task end, in training the last step?", [job_query("eta_seconds")],
                      "s"),
                Panel("Silence", "How long has each job said nothing but that its driver lives?", [
                    Query(f"time() - {of_job('last_event_timestamp_seconds')}"),
                ], "s", warn_above=1200),
            ],
        ),
        Row(
            "Trouble",
            [
                Panel("Warnings", "What has each job warned of so far?", [
                    Query(f"{of_job('warnings_total', 'kind')} > 0", "{{kind}} " + JOB_LEGEND),
                ], kind="bargauge"),
                Panel("Lost attempts", "How often does the infrastructure take drivers away?", [
                    Query("sum by (kind) (increase(sleddog_attempts_lost_total[1h]))", "{{kind}}"),
                ]),
                Panel("GPUs in use", "How many GPUs does each job use? A worker counts as one.", [
                    Query(f"max by (job_id, name) (rate(sleddog_job_gpu_seconds_total{{{OF_JOB}}}{_RATE}))"),
                ], is_stacked=True),
            ],
        ),
    ],
)  # fmt: skip

TRAINING = Dashboard(
    "sleddog-training",
    "Sleddog: training",
    "How well the running jobs learn, how fast, and where a step's time goes.",
    ("project", "job"),
    [
        Row(
            "Learning",
            [
                Panel("Loss", "Nats per trained token of the last step. Does it fall?", [job_query("loss")]),
                Panel("Learning rate", "Where in its schedule is the job?", [job_query("learning_rate")]),
                Panel("Gradient norm", "Before clipping. Does it jump?", [job_query("gradient_norm")]),
                Panel("Skipped steps", "Steps whose gradient was not finite. Any is a bad sign.", [
                    job_query("skipped_steps_total"),
                ], warn_above=1),
            ],
        ),
        Row(
            "Progress",
            [
                Panel("Step", "How many optimiser steps are done?", [
                    Query(f"{of_job('step')} / {of_job('steps_planned')}"),
                ], "percentunit"),
                Panel("Epoch", "How often was the data seen?", [job_query("epoch")]),
                Panel("Tokens a second", "Real tokens, without padding, of all workers.", [
                    job_query("tokens_per_second"),
                ]),
                Panel("Model FLOPs utilisation", "Which share of the hardware's peak is put to use?", [
                    job_query("model_flops_utilisation_ratio"),
                ], "percentunit"),
            ],
        ),
        Row(
            "A step",
            [
                Panel("Step time", "Of the last step, data wait included.", [job_query("step_seconds")], "s"),
                Panel("Phases", "Where does the time go? On worker 0; the rest are counts exchanged.", [
                    Query(of_job("step_phase_seconds", "phase"), "{{phase}} " + JOB_LEGEND),
                ], "s", is_stacked=True),
                Panel("Data wait", "Which share of a step waits for its rows?", [
                    Query(f'max by (job_id, name) (sleddog_job_step_phase_seconds{{phase="data_wait",{OF_JOB}}})'
                          f" / {of_job('step_seconds')}"),
                ], "percentunit", warn_above=0.2),
                Panel("Memory", "Most that any worker had in use.", [job_query("memory_bytes")], "bytes"),
            ],
        ),
    ],
)  # fmt: skip

MOE = Dashboard(
    "sleddog-moe",
    "Sleddog: MoE balance",
    "Whether the experts pull evenly.",
    ("project", "job"),
    [
        Row(
            "All layers",
            [
                Panel("Balance loss over its floor", "1 is perfect balance; what is above is what routing costs.", [
                    Query(f"{of_job('balance_loss')} / {of_job('balance_loss_floor')}"),
                ], warn_above=1.5),
                Panel("Busiest expert over the mean", "Of the worst layer; 1 is even.", [
                    job_query("layer_load_max_over_mean"),
                ], warn_above=4),
                Panel("Dead experts", "Without a token in the last step, all layers together.", [
                    Query(f"sum by (job_id, name) ({of_job('layer_dead_experts', 'layer')})"),
                ], warn_above=1),
                Panel("Dropped token copies", "That found no room at their expert.", [job_query("dropped_ratio")],
                      "percentunit", warn_above=0.05),
            ],
        ),
        Row(
            "Layer by layer",
            [
                Panel("Busiest expert over the mean", "Which layer leans on few experts?", [
                    Query(of_job("layer_load_max_over_mean", "layer"), "layer {{layer}} " + JOB_LEGEND),
                ]),
                Panel("Router entropy", "As a share of an even choice's. Which router is sure too early?", [
                    Query(f"{of_job('layer_router_entropy_nats', 'layer')} / on (job_id, name) group_left"
                          f" ln({of_job('experts')})", "layer {{layer}} " + JOB_LEGEND),
                ], "percentunit"),
                Panel("Dead experts", "In which layer are experts idle?", [
                    Query(of_job("layer_dead_experts", "layer"), "layer {{layer}} " + JOB_LEGEND),
                ]),
            ],
        ),
        Row(
            "Warnings",
            [
                Panel("Router collapse and dead experts", "What have the jobs' own guards seen so far?", [
                    Query("max by (job_id, name, kind) (sleddog_job_warnings_total"
                          f'{{kind=~"router_collapse|dead_experts",{OF_JOB}}})', "{{kind}} " + JOB_LEGEND),
                ]),
                Panel("Experts of a layer", "How many are there to choose from?", [job_query("experts")], kind="stat"),
            ],
        ),
    ],
)  # fmt: skip

DATA = Dashboard(
    "sleddog-data",
    "Sleddog: data",
    "What preparation made of the rows of the running jobs.",
    ("project", "job"),
    [
        Row(
            "Rows",
            [
                Panel("Read", "Rows of the sources.", [job_query("rows_read")], kind="stat"),
                Panel("Kept", "Rows that the mix takes, each once.", [job_query("rows_kept")], kind="stat"),
                Panel("Kept of those read", "Was more thrown away than meant?", [
                    Query(f"{of_job('rows_kept')} / {of_job('rows_read')}"),
                ], "percentunit", kind="stat"),
                Panel("Dropped, by reason", "Where did the others go?", [
                    Query(of_job("rows_dropped", "reason"), "{{reason}} " + JOB_LEGEND),
                ], kind="bargauge"),
            ],
        ),
        Row(
            "Packing",
            [
                Panel("Fill", "How full are the packed rows?", [job_query("packing_fill_ratio")], "percentunit",
                      kind="stat", warn_below=0.9),
                Panel("Trained tokens", "Which share of the tokens is trained?", [job_query("trained_tokens_ratio")],
                      "percentunit", kind="stat"),
                Panel("Packed rows", "How many rows does an epoch have?", [job_query("packed_rows")], kind="stat"),
                Panel("Tokens", "How many tokens does an epoch have?", [job_query("packed_tokens")], kind="stat"),
            ],
        ),
        Row(
            "At work",
            [
                Panel("Preparing", "How far are the jobs that prepare?", [
                    Query(f'{of_job("task_done_ratio")} and on (job_id) sleddog_job_info{{stage="prepare",{OF_JOB}}}'),
                ], "percentunit"),
                Panel("Data wait", "Does training wait for rows? Seconds of the last step.", [
                    Query(f'max by (job_id, name) (sleddog_job_step_phase_seconds{{phase="data_wait",{OF_JOB}}})'),
                ], "s"),
            ],
        ),
    ],
)  # fmt: skip

CONTROL_PLANE = Dashboard(
    "sleddog-control-plane",
    "Sleddog: control plane",
    "Whether the service does its work: requests, reconciler, store, webhooks, and Ray's nodes.",
    (),
    [
        Row(
            "Requests",
            [
                Panel("Requests a second", "By status.", [
                    Query(f"sum by (status) (rate(sleddog_http_requests_total{_RATE}))", "{{status}}"),
                ], "reqps", is_stacked=True),
                Panel("Errors", "Which share is answered 5xx? `/readyz` is left out: 503 is what it is for.", [
                    Query('(sum(rate(sleddog_http_requests_total{status=~"5..",route!="/readyz"}'
                          f"{_RATE})) or vector(0)) / sum(rate(sleddog_http_requests_total{_RATE}))", "5xx"),
                ], "percentunit", warn_above=0.05),
                Panel("Time to the first byte", "Of 99 of 100 requests, by route.", [
                    Query("histogram_quantile(0.99, sum by (le, route)"
                          f" (rate(sleddog_http_request_seconds_bucket{_RATE})))", "{{route}}"),
                ], "s"),
                Panel("Followers", "Open streams of events.", [Query("sum(sleddog_followers)", "streams")]),
            ],
        ),
        Row(
            "Reconciler",
            [
                Panel("Age of the last look", "Does it still look at the jobs?", [
                    Query("sleddog_reconcile_lag_seconds", "{{instance}}"),
                ], "s", warn_above=60),
                Panel("A look takes", "How long?", [Query("sleddog_reconcile_seconds", "{{instance}}")], "s"),
                Panel("Failures a minute", "Looks that failed, and run directories that did not answer.", [
                    Query(f"60 * sum(rate(sleddog_reconcile_failures_total{_RATE}))", "looks"),
                    Query(f"60 * sum(rate(sleddog_ingest_failures_total{_RATE}))", "events"),
                ]),
                Panel("Events a second", "Taken in from run directories.", [
                    Query(f"sum(rate(sleddog_events_ingested_total{_RATE}))", "events"),
                ]),
            ],
        ),
        Row(
            "What it stands on",
            [
                Panel("Ray", "1 when Ray answers.", [Query("max(sleddog_ray_up)", "Ray")], kind="stat", warn_below=1),
                Panel("Store", "What a transaction takes that reads nothing.", [
                    Query("sleddog_store_ping_seconds", "{{instance}}"),
                ], "s", warn_above=1),
                Panel("Size of the database", "How fast does it grow?", [
                    Query("max(sleddog_store_bytes)", "database"),
                ], "bytes"),
                Panel("Free disk", "Of file systems on the service's machine.", [
                    Query("sleddog_disk_free_bytes / sleddog_disk_bytes", "{{of}} {{instance}}"),
                ], "percentunit", warn_below=0.1),
            ],
        ),
        Row(
            "Webhooks and the process",
            [
                Panel("Outbox", "Messages that wait, and for how many seconds the first is overdue.", [
                    Query("max(sleddog_webhook_pending_messages)", "messages"),
                    Query("max(sleddog_webhook_overdue_seconds)", "seconds overdue"),
                ]),
                Panel("Receivers", "Failing ones did not take their last message.", [
                    Query("max by (state) (sleddog_webhook_receivers)", "{{state}}"),
                ], kind="bargauge"),
                Panel("Messages a minute", "What became of them?", [
                    Query(f"60 * sum by (outcome) (rate(sleddog_webhook_tries_total{_RATE}))", "{{outcome}}"),
                ]),
                Panel("Processor and memory", "Of the service itself.", [
                    Query(f"rate(process_cpu_seconds_total{_RATE}) and on (instance) sleddog_info",
                          "cores {{instance}}"),
                    Query("process_resident_memory_bytes / 2 ^ 30 and on (instance) sleddog_info",
                          "GiB {{instance}}"),
                ]),
            ],
        ),
        Row(
            "Ray's nodes: metrics of Ray's own, empty where Prometheus does not scrape Ray",
            [
                Panel("Processors", "How busy are the nodes?", [
                    Query("ray_node_cpu_utilization", "{{instance}}"),
                ], "percent"),
                Panel("Memory", "Used of all.", [
                    Query("ray_node_mem_used / ray_node_mem_total", "{{instance}}"),
                ], "percentunit"),
                Panel("GPUs", "How busy is each?", [
                    Query("ray_node_gpus_utilization", "{{instance}} {{GpuIndex}}"),
                ], "percent"),
            ],
        ),
    ],
)  # fmt: skip

DASHBOARDS = (JOBS, TRAINING, MOE, DATA, CONTROL_PLANE)


def texts() -> dict[str, str]:
    """The JSON of each dashboard by its file's name."""
    named = {item.uid.removeprefix("sleddog-"): render(item) for item in DASHBOARDS}
    return {f"{name}.json": json.dumps(model, indent=2) + "\n" for name, model in named.items()}


def main() -> None:
    """Write them."""
    for name, text in texts().items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    main()
