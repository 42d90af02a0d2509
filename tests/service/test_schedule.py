"""The scheduler's rules, over situations that are drawn, and over whole histories of a cluster that is simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from service.schedule.decide import decide
from service.schedule.queue import AGING_S, MIN_RUN_S, Active, Resources, Share, Situation, Waiting

PROJECTS = ("one", "two", "three")


def waiting(id: str, workers: int = 1, project: str = "one", priority: int = 0, waited_s: float = 0.0) -> Waiting:
    return Waiting(id, project, priority, workers, Resources(workers), waited_s)


def active(id: str, workers: int = 1, project: str = "one", priority: int = 0, ran_s: float = 1e6) -> Active:
    return Active(id, project, priority, workers, Resources(workers), ran_s)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    project, priority = st.sampled_from(PROJECTS), st.integers(-3, 3)
    workers, seconds = st.integers(1, 8), st.floats(0, 4 * AGING_S)
    queue = [
        waiting(f"w{n}", draw(workers), draw(project), draw(priority), draw(seconds))
        for n in range(draw(st.integers(0, 8)))
    ]
    capacity = draw(st.integers(1, 16))
    running: list[Active] = []
    for n in range(draw(st.integers(0, 5))):
        job = active(f"a{n}", draw(workers), draw(project), draw(priority), draw(seconds))
        job = replace(job, is_stopping=draw(st.booleans()), remaining_s=draw(st.none() | seconds))
        if sum(other.workers for other in running) + job.workers <= capacity:
            running.append(job)
    shares = {
        name: Share(
            weight=draw(st.floats(0.5, 4)),
            used_worker_s=draw(st.floats(0, 1e6)),
            max_jobs=draw(st.none() | st.integers(1, 4)),
            max_workers=draw(st.none() | st.integers(1, 10)),
            worker_hours_left=draw(st.none() | st.floats(-1, 5)),
        )
        for name in draw(st.sets(project))
    }
    known = draw(st.sampled_from([Resources(capacity), None]))
    return Situation(queue, running, known, draw(st.integers(1, 6)), shares)


@settings(deadline=None)
@given(situations())
def test_every_job_is_started_or_told_why_not(situation: Situation) -> None:
    decision = decide(situation)
    told = [*decision.start, *(wait.id for wait in decision.wait)]
    assert Counter(told) == Counter(job.id for job in situation.waiting)
    assert [wait.position for wait in decision.wait] == list(range(1, len(decision.wait) + 1))
    assert all(wait.reason for wait in decision.wait)
    assert decide(situation) == decision


@settings(deadline=None)
@given(situations())
def test_what_starts_fits_the_cluster_and_the_quotas(situation: Situation) -> None:
    decision = decide(situation)
    by_id = {job.id: job for job in situation.waiting}
    started = [by_id[name] for name in decision.start]
    running = [*situation.active, *started]
    if started:
        assert len(running) <= situation.max_active
    if started and situation.capacity is not None:
        assert sum(job.needs.cpus for job in running) <= situation.capacity.cpus
    for project in {job.project for job in started}:
        share, theirs = situation.share(project), [job for job in running if job.project == project]
        assert share.max_jobs is None or len(theirs) <= share.max_jobs
        assert share.max_workers is None or sum(job.workers for job in theirs) <= share.max_workers
        assert share.worker_hours_left is None or share.worker_hours_left > 0


@settings(deadline=None)
@given(situations())
def test_only_lower_priorities_give_way_and_no_more_of_them_than_needed(situation: Situation) -> None:
    decision = decide(situation)
    running = {job.id: job for job in situation.active}
    by_id = {job.id: job for job in situation.waiting}
    for victim, job in decision.preempt.items():
        assert running[victim].priority < by_id[job].priority
        assert running[victim].ran_s >= MIN_RUN_S
        assert not running[victim].is_stopping
    [preemptor] = set(decision.preempt.values()) or {None}
    if preemptor is not None:
        spared = [name for name in decision.preempt if name != min(decision.preempt)]
        left = [job for job in situation.active if not job.is_stopping and job.id not in spared]
        started = [by_id[name] for name in decision.start]
        has_slot = len(left) + len(started) < situation.max_active
        used = sum(job.workers for job in (*left, *started))
        has_room = situation.capacity is None or used + by_id[preemptor].workers <= situation.capacity.cpus
        assert not (has_slot and has_room), "with one fewer stopped there is no room"


@settings(deadline=None)
@given(situations())
def test_nobody_passes_one_of_the_same_project_that_needs_no_more(situation: Situation) -> None:
    decision = decide(situation)
    by_id = {job.id: job for job in situation.waiting}
    order = {job.id: n for n, job in enumerate(situation.waiting)}
    for wait in decision.wait:
        left = by_id[wait.id]
        for name in decision.start:
            started = by_id[name]
            is_first = (-left.aged_priority, order[left.id]) < (-started.aged_priority, order[name])
            assert not (is_first and left.project == started.project and left.workers <= started.workers)


@dataclass
class Cluster:
    """A cluster in which time passes a minute at a time."""

    capacity: int
    max_active: int
    shares: dict[str, Share]
    minute_s: float = 60.0

    def __post_init__(self) -> None:
        self.queue: list[Waiting] = []
        self.running: dict[str, Active] = {}
        self.ends_in: dict[str, float] = {}
        self.duration_s: dict[str, float] = {}
        self.worker_s = Counter[str]()
        self.started_after: dict[str, float] = {}
        self.num_preemptions = 0

    def post(self, job: Waiting, duration_s: float) -> None:
        self.queue.append(job)
        self.duration_s[job.id] = duration_s

    def pass_a_minute(self) -> None:
        shares = {name: replace(share, used_worker_s=float(self.worker_s[name])) for name, share in self.shares.items()}
        running = list(self.running.values())
        decision = decide(Situation(self.queue, running, Resources(self.capacity), self.max_active, shares))
        by_id = {job.id: job for job in self.queue}
        for name in decision.start:
            job = by_id[name]
            self.running[name] = Active(name, job.project, job.priority, job.workers, job.needs)
            self.ends_in.setdefault(name, self.duration_s[name])
            self.started_after.setdefault(name, job.waited_s)
        self.queue = [job for job in self.queue if job.id not in decision.start]
        for name in decision.preempt:
            job = self.running.pop(name)
            self.queue.append(Waiting(name, job.project, job.priority, job.workers, job.needs))
            self.num_preemptions += 1
        assert sum(job.workers for job in self.running.values()) <= self.capacity
        self.queue = [replace(job, waited_s=job.waited_s + self.minute_s) for job in self.queue]
        for name, job in list(self.running.items()):
            self.worker_s[job.project] += int(job.workers * self.minute_s)
            self.ends_in[name] -= self.minute_s
            self.running[name] = replace(job, ran_s=job.ran_s + self.minute_s)
            if self.ends_in[name] <= 0:
                del self.running[name]


def test_projects_get_the_cluster_by_their_weights() -> None:
    cluster = Cluster(4, 8, {"one": Share(weight=1), "two": Share(weight=3)})
    for n in range(150):
        cluster.post(waiting(f"one-{n}", project="one"), 600)
        cluster.post(waiting(f"two-{n}", project="two"), 600)
    for _ in range(200):
        cluster.pass_a_minute()
    assert 2.7 < cluster.worker_s["two"] / cluster.worker_s["one"] < 3.3


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2), st.sampled_from(PROJECTS)), min_size=1, max_size=12))
def test_nothing_waits_for_ever_while_others_keep_coming(jobs: list[tuple[int, int, str]]) -> None:
    cluster = Cluster(4, 4, {name: Share() for name in PROJECTS})
    for n, (workers, priority, project) in enumerate(jobs):
        cluster.post(waiting(f"job-{n}", workers, project, priority), 900)
    minute = 0
    while len([name for name in cluster.started_after if name.startswith("job-")]) < len(jobs):
        cluster.post(waiting(f"other-{minute}", 1, "one", 2), 900)
        cluster.pass_a_minute()
        minute += 1
        assert minute < 60 * 24, "a small job of high priority each minute keeps nobody out for a day"


def test_a_job_that_needs_the_whole_cluster_gets_it_though_small_ones_come_all_the_time() -> None:
    cluster = Cluster(4, 8, {})
    for minute in range(60):
        cluster.post(waiting(f"small-{minute}"), 1200)
        if minute == 5:
            cluster.post(waiting("large", 4), 600)
        cluster.pass_a_minute()
    assert cluster.started_after["large"] < 3600


def test_a_high_priority_takes_the_place_of_the_lowest_and_that_one_goes_on_later() -> None:
    cluster = Cluster(4, 4, {})
    cluster.post(waiting("low", 2, priority=-1), 3600)
    cluster.post(waiting("middle", 2), 3600)
    for _ in range(10):
        cluster.pass_a_minute()
    cluster.post(waiting("high", 2, priority=5), 600)
    cluster.pass_a_minute()
    assert (set(cluster.running), cluster.num_preemptions) == ({"middle"}, 1)
    for _ in range(100):
        cluster.pass_a_minute()
    assert (cluster.num_preemptions, cluster.queue, set(cluster.running)) == (1, [], set())


def test_the_eta_is_when_enough_of_the_running_jobs_end() -> None:
    running = [replace(active("a", 2), remaining_s=100), replace(active("b", 2), remaining_s=300)]
    queue = [waiting("x", 2), waiting("y", 2), waiting("z", 2)]
    decision = decide(Situation(queue, running, Resources(4), max_active=4))
    assert [(wait.id, wait.eta_s) for wait in decision.wait] == [("x", 100), ("y", 300), ("z", None)]


def test_a_job_says_what_it_waits_for() -> None:
    running = [active("a", 3, "two")]
    shares = {"one": Share(max_workers=2), "two": Share(max_jobs=1), "three": Share(worker_hours_left=0)}
    queue = [waiting("x", 3, "one"), waiting("y", 1, "two"), waiting("z", 1, "three"), waiting("v", 2, "four")]
    decision = decide(Situation(queue, running, Resources(4), max_active=4, shares=shares))
    assert {wait.id: wait.reason for wait in decision.wait} == {
        "x": "needs 3 GPUs; project one uses 0, of 2 that it may",
        "y": "project two has 1 jobs running, of 1 it may",
        "z": "project three has used up its GPU hours",
        "v": "needs 2 CPUs at once; free are 1 CPUs",
    }
