from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.errors import InvalidSettingsError, NotAuthenticatedError
from service.server_secret import load_secret
from service.spec.access import NewKey, NewProject, NewUser, Role, Rotation, Scope
from service.spec.job import JobSpec
from service.spec.resources import Job, Sweep
from service.spec.sweep import SweepSpec
from service.store.engine import MIGRATIONS, migrate, open_engine
from service.store.models import ApiKeyRow, Base
from service.store.store import Store

AsUser = Callable[..., TestClient]


@pytest.fixture
def with_key(parts: ControlPlane) -> Callable[[str], TestClient]:
    app = create_app(parts)
    return lambda key: TestClient(app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


@pytest.fixture
def as_user(store: Store, key: str, with_key: Callable[[str], TestClient]) -> AsUser:
    """A connection of a user with a role, by a key with scopes, in the default project."""

    def connect(role: Role, scopes: tuple[Scope, ...] = ("read", "write", "admin")) -> TestClient:
        admin = store.of(store.authenticate(key))
        user, _ = admin.create_user(NewUser(id=f"{role}-{len(admin.list_users()[0])}", role=role))
        made, _ = admin.create_key(NewKey(name="test", user=user.id, scopes=scopes))
        assert made.secret is not None
        return with_key(made.secret)

    return connect


@pytest.fixture
def elsewhere(store: Store, key: str, with_key: Callable[[str], TestClient]) -> TestClient:
    """A connection of another project's admin."""
    project, _ = store.of(store.authenticate(key)).create_project(NewProject(id="elsewhere"))
    assert project.first_key is not None
    assert project.first_key.secret is not None
    return with_key(project.first_key.secret)


def code(answer: Any) -> tuple[int, str]:
    """In the form of either side: problem details, or OpenAI's, which has a word of its own for a missing key."""
    body = answer.json()
    found = body["error"]["code"] if "error" in body else body["code"]
    return answer.status_code, "not_authenticated" if found == "invalid_api_key" else found


@pytest.mark.parametrize(
    ("role", "scopes", "reads", "writes", "administers"),
    [
        ("viewer", ("read", "write", "admin"), True, False, False),
        ("member", ("read", "write", "admin"), True, True, False),
        ("admin", ("read", "write", "admin"), True, True, True),
        ("admin", ("read",), True, False, False),
        ("admin", ("write",), False, True, False),
        ("admin", ("admin",), False, False, True),
    ],
)
def test_a_key_may_what_both_its_users_role_and_its_scopes_allow(
    as_user: AsUser,
    job_document: dict[str, Any],
    role: Role,
    scopes: tuple[Scope, ...],
    reads: bool,
    writes: bool,
    administers: bool,
) -> None:
    user = as_user(role, scopes)
    answers = [user.get("/v1/jobs"), user.post("/v1/jobs", json=job_document), user.get("/v1/keys")]
    assert [answer.is_success for answer in answers] == [reads, writes, administers]
    assert {code(answer) for answer in answers if not answer.is_success} <= {(403, "not_authorized")}


def test_a_refusal_says_what_is_missing(as_user: AsUser, job_document: dict[str, Any]) -> None:
    answer = as_user("viewer").post("/v1/jobs", json=job_document)
    assert answer.json()["detail"] == "this needs the role member in project default; yours is viewer"
    answer = as_user("admin", ("read", "write")).get("/v1/audit")
    assert answer.json()["detail"] == "this needs a key with the scope admin; yours has read, write"


def test_every_route_needs_a_key_and_says_so(parts: ControlPlane) -> None:
    app = create_app(parts)
    paths = app.openapi()["paths"]
    open_paths = {"/healthz", "/readyz"}  # and /metrics says who may read it
    tried = 0
    for path, operations in paths.items():
        for method, operation in operations.items():
            # each from an address of its own, for one that tries often is held off
            anonymous = TestClient(app, raise_server_exceptions=False, client=(f"10.0.0.{tried}", 1))
            answer = anonymous.request(method, path.replace("{", "").replace("}", ""), json={})
            if path in open_paths:
                continue
            tried += 1
            assert code(answer) == (401, "not_authenticated"), (method, path)
            assert {"401", "403"} <= set(operation["responses"]), (method, path)
    assert tried >= 25


def test_what_one_project_has_is_not_found_by_another(
    parts: ControlPlane, http: TestClient, store: Store, elsewhere: TestClient, spec: JobSpec, sweep_spec: SweepSpec
) -> None:
    """Tries every route with an id in its path, also those that come later."""
    job, _ = store.create(Job, spec, parts.runs_url)
    sweep, _ = store.create(Sweep, sweep_spec, parts.runs_url)
    user, key = http.get("/v1/me").json()["user"], http.get("/v1/me").json()["key_id"]
    http.post("/v1/users", json={"id": "ada"})
    ids = {"job_id": job.id, "sweep_id": sweep.id, "user_id": "ada", "key_id": key}
    tried = 0
    for path, operations in create_app(parts).openapi()["paths"].items():
        names = re.findall(r"\{(\w+)\}", path)
        if not names or names[0] not in ids:
            continue
        filled = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "any"), path)
        for method in operations:
            body = None if method != "patch" else {"role": "viewer"} if names[0] == "user_id" else {"priority": 1}
            answer = elsewhere.request(method, filled, json=body)
            assert code(answer) == (404, "not_found"), (method, path)
            tried += 1
    assert tried >= 20
    assert elsewhere.get("/v1/jobs").json()["data"] == elsewhere.get("/v1/sweeps").json()["data"] == []
    assert [item["id"] for item in http.get("/v1/jobs").json()["data"]] == [job.id]
    assert store.get(Job, job.id).status == "queued", "nothing was cancelled from elsewhere"
    assert elsewhere.get("/v1/me").json() | {"key_id": ""} == {
        "key_id": "",
        "user": user,
        "project": "elsewhere",
        "role": "admin",
        "scopes": ["admin", "read", "write"],
    }


def test_a_job_belongs_to_its_makers_project(http: TestClient, elsewhere: TestClient, job_document: Any) -> None:
    job = elsewhere.post("/v1/jobs", json=job_document).json()
    assert (job["project"], job["created_by"]) == ("elsewhere", "admin")
    assert elsewhere.get(f"/v1/jobs/{job['id']}").status_code == 200
    assert http.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_idempotency_keys_of_two_projects_do_not_meet(
    http: TestClient, elsewhere: TestClient, job_document: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "k"}
    first = http.post("/v1/jobs", json=job_document, headers=headers)
    second = elsewhere.post("/v1/jobs", json=job_document | {"seed": 7}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert http.post("/v1/jobs", json=job_document, headers=headers).json()["id"] == first.json()["id"]


CREATES: dict[str, list[dict[str, Any]]] = {
    "/v1/projects": [{"id": "apart"}, {"id": "another"}],
    "/v1/users": [{"id": "ada", "role": "viewer"}, {"id": "ada", "role": "admin"}],
    "/v1/keys": [{"name": "ci"}, {"name": "cd"}],
}


@pytest.mark.parametrize("path", CREATES)
def test_creating_twice_with_one_key_creates_once(http: TestClient, path: str) -> None:
    body, other = CREATES[path]
    headers = {"Idempotency-Key": "k"}
    before = len(http.get(path).json()["data"])
    first = http.post(path, json=body, headers=headers)
    again = http.post(path, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"]
    assert len(http.get(path).json()["data"]) == before + 1
    assert code(http.post(path, json=other, headers=headers)) == (409, "conflict")
    assert code(http.post("/v1/keys", json={"name": "x"}, headers=headers)) == (409, "conflict")


def test_what_exists_is_not_created_again(http: TestClient) -> None:
    for path, body in (("/v1/projects", {"id": "default"}), ("/v1/users", {"id": "admin"})):
        answer = http.post(path, json=body)
        assert code(answer) == (409, "conflict")
        assert answer.json()["errors"][0]["field"] == "id"


def test_only_the_default_projects_admins_create_projects(elsewhere: TestClient, http: TestClient) -> None:
    assert code(elsewhere.post("/v1/projects", json={"id": "third"})) == (403, "not_authorized")
    assert [project["id"] for project in http.get("/v1/projects").json()["data"]] == ["default", "elsewhere"]
    assert [project["id"] for project in elsewhere.get("/v1/projects").json()["data"]] == ["elsewhere"]


def test_a_keys_secret_is_shown_once_and_stored_nowhere(http: TestClient, store: Store) -> None:
    made = http.post("/v1/keys", json={"name": "ci"}, headers={"Idempotency-Key": "k"}).json()
    assert re.fullmatch(rf"sd-{made['id']}-[\w-]{{43}}", made["secret"])
    assert http.post("/v1/keys", json={"name": "ci"}, headers={"Idempotency-Key": "k"}).json()["secret"] is None
    secret = made["secret"].rpartition("-")[2]
    for path in ("/v1/keys", f"/v1/keys/{made['id']}", "/v1/audit"):
        assert secret not in http.get(path).text
    with store._engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            assert secret not in str(connection.execute(select(table)).all())


def test_a_key_is_of_its_secret_and_of_the_servers(store: Store, key: str) -> None:
    assert store.authenticate(key).user == "admin"
    last = "A" if key[-1] != "A" else "B"
    for wrong in (key[:-1] + last, key[:-1], key + "x", "sd-000000000000-" + key[-43:], "", "sd-", "ключ"):
        with pytest.raises(NotAuthenticatedError, match="not valid"):
            store.authenticate(wrong)
    with pytest.raises(NotAuthenticatedError, match="not valid"):
        Store(store._engine, b"1" * 32).authenticate(key)


def test_a_rotated_key_works_until_the_overlap_is_over(
    http: TestClient, store: Store, parts: ControlPlane, with_key: Callable[[str], TestClient]
) -> None:
    old = http.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in_days": 90}).json()
    new = http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 3600}).json()
    assert (new["name"], new["scopes"], new["replaces"]) == ("ci", ["read"], old["id"])
    assert with_key(old["secret"]).get("/v1/me").status_code == with_key(new["secret"]).get("/v1/me").status_code == 200
    with store._transaction() as session:
        row = session.get_one(ApiKeyRow, old["id"])
        assert row.expires_at is not None
        assert timedelta(minutes=59) < row.expires_at - datetime.now(UTC) < timedelta(minutes=61)
        row.expires_at = datetime.now(UTC)
    parts.principals.forget()  # as a second later
    answer = with_key(old["secret"]).get("/v1/me")
    assert (answer.status_code, answer.json()["detail"]) == (401, "this API key has expired")
    assert code(http.post(f"/v1/keys/{old['id']}/rotate")) == (409, "conflict")
    expires_at = datetime.fromisoformat(new["expires_at"])
    assert timedelta(days=89) < expires_at - datetime.now(UTC) < timedelta(days=91), "it lives as long as the old one"


def test_a_revoked_key_is_refused_at_once(http: TestClient, with_key: Callable[[str], TestClient]) -> None:
    made = http.post("/v1/keys", json={"name": "ci"}).json()
    assert http.post(f"/v1/keys/{made['id']}/revoke").json()["revoked_at"] is not None
    answer = with_key(made["secret"]).get("/v1/me")
    assert (answer.status_code, answer.json()["detail"]) == (401, "this API key was revoked")
    first = http.post(f"/v1/keys/{made['id']}/revoke").json()
    assert http.post(f"/v1/keys/{made['id']}/revoke").json() == first, "revoking twice changes nothing"


def test_a_key_ends_with_its_users_membership(http: TestClient, with_key: Callable[[str], TestClient]) -> None:
    http.post("/v1/users", json={"id": "ada"})
    theirs = http.post("/v1/keys", json={"name": "ci", "user": "ada"}).json()
    assert with_key(theirs["secret"]).get("/v1/jobs").status_code == 200
    http.patch("/v1/users/ada", json={"role": "viewer"})
    assert with_key(theirs["secret"]).get("/v1/me").json()["role"] == "viewer", "the role counts that is now"
    assert http.delete("/v1/users/ada").status_code == 204
    assert with_key(theirs["secret"]).get("/v1/jobs").status_code == 401
    http.post("/v1/users", json={"id": "ada"})
    assert with_key(theirs["secret"]).get("/v1/jobs").status_code == 401, "coming back does not bring old keys back"
    assert code(http.post("/v1/keys", json={"name": "x", "user": "nobody"})) == (404, "not_found")


def test_a_project_keeps_an_admin(http: TestClient) -> None:
    assert code(http.patch("/v1/users/admin", json={"role": "member"})) == (409, "conflict")
    assert code(http.delete("/v1/users/admin")) == (409, "conflict")
    http.post("/v1/users", json={"id": "ada", "role": "admin"})
    assert http.patch("/v1/users/admin", json={"role": "admin"}).status_code == 200


def test_a_keys_last_use_is_seen(http: TestClient, with_key: Callable[[str], TestClient]) -> None:
    made = http.post("/v1/keys", json={"name": "ci"}).json()
    assert made["last_used_at"] is None
    with_key(made["secret"]).get("/v1/jobs")
    used = datetime.fromisoformat(http.get(f"/v1/keys/{made['id']}").json()["last_used_at"])
    assert abs(datetime.now(UTC) - used) < timedelta(minutes=1)


def test_keys_are_listed_page_by_page(http: TestClient) -> None:
    made = [http.post("/v1/keys", json={"name": str(number)}).json()["id"] for number in range(3)]
    page = http.get("/v1/keys", params={"limit": 2}).json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    page = http.get("/v1/keys", params={"after": made[1]}).json()
    assert page["data"][0]["id"] == made[0]


def test_writes_and_refused_accesses_are_recorded(
    http: TestClient, as_user: AsUser, parts: ControlPlane, job_document: dict[str, Any]
) -> None:
    job = http.post("/v1/jobs", json=job_document)
    path = f"/v1/jobs/{job.json()['id']}"
    http.get(path)
    http.post(f"{path}/cancel")
    http.post(f"{path}/cancel")
    http.post("/v1/jobs/job-0/cancel")
    http.post("/v1/jobs", json=job_document | {"seed": -1})
    as_user("viewer").post(f"{path}/cancel")
    TestClient(create_app(parts)).get("/v1/jobs")
    entries = [entry for entry in http.get("/v1/audit").json()["data"] if "job" in entry["target"]]
    assert [
        (entry["user"], entry["action"], entry["target"], entry["outcome"], entry["code"]) for entry in entries
    ] == [
        (None, "list_jobs", "/v1/jobs", "refused", "not_authenticated"),
        ("viewer-1", "cancel_job", f"{path}/cancel", "refused", "not_authorized"),
        ("admin", "create_job", "/v1/jobs", "failed", "invalid_spec"),
        ("admin", "cancel_job", "/v1/jobs/job-0/cancel", "failed", "not_found"),
        ("admin", "cancel_job", f"{path}/cancel", "done", None),
        ("admin", "cancel_job", f"{path}/cancel", "done", None),
        ("admin", "create_job", path, "done", None),
    ]
    assert entries[-1]["request_id"] == job.headers["x-request-id"]
    assert {entry["address"] for entry in entries} == {"testclient"}
    page = http.get("/v1/audit", params={"limit": 2}).json()
    assert page["has_more"]
    following = http.get("/v1/audit", params={"after": page["data"][-1]["id"], "limit": 1}).json()["data"]
    assert [entry["id"] for entry in following] == [page["data"][-1]["id"] - 1]


def test_a_write_that_is_rolled_back_leaves_no_entry_that_it_was_done(
    http: TestClient, parts: ControlPlane, job_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("service.store.runs.append_events", fail)
    assert http.post("/v1/jobs", json=job_document).status_code == 500
    assert [entry["outcome"] for entry in http.get("/v1/audit").json()["data"]] == ["failed"]
    assert http.get("/v1/jobs").json()["data"] == []


def test_projects_do_not_see_each_others_record(http: TestClient, elsewhere: TestClient) -> None:
    elsewhere.post("/v1/keys", json={"name": "theirs"})
    assert {entry["project"] for entry in elsewhere.get("/v1/audit").json()["data"]} == {"elsewhere"}
    assert "elsewhere" not in {entry["project"] for entry in http.get("/v1/audit").json()["data"]}


def test_keys_and_jobs_of_the_schema_before_projects_work_still(tmp_path: Path, spec: JobSpec) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    key = "sd-Nk1-old_key-0123456789abcdefghijklmnopqrstuv"
    digest = hashlib.sha256(key.encode()).hexdigest()
    at = "2026-01-01 00:00:00.000000"
    job = {"spec": spec.model_dump_json(), "sha": spec.sha256(), "at": at}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.execute(text("INSERT INTO api_keys VALUES (:digest, :at)"), {"digest": digest, "at": at})
        connection.execute(
            text(
                "INSERT INTO jobs (id, kind, name, status, attempt, spec, spec_sha256, run_url, created_at, progress)"
                " VALUES ('job-1', 'job', 'old', 'queued', 0, :spec, :sha, '/runs/job-1', :at, '{}')"
            ),
            job,
        )
        connection.execute(text("INSERT INTO idempotency_keys VALUES ('k', :sha, 'job-1')"), job)
    migrate(engine)
    migrate(engine)
    store = Store(engine, b"0" * 32)
    principal = store.authenticate(key)
    assert (principal.user, principal.project, principal.role) == ("admin", "default", "admin")
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(key + "x")
    mine = store.of(principal)
    assert mine.get(Job, "job-1").project == "default"
    assert mine.create(Job, spec, "/runs", "k")[0].id == "job-1", "the idempotency key is known still"
    [listed], _ = mine.list_keys()
    assert listed.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    rotated, _ = mine.rotate_key(listed.id, Rotation(overlap_s=0))
    assert rotated.secret is not None
    assert store.authenticate(rotated.secret).project == "default"
    with pytest.raises(NotAuthenticatedError, match="expired"):
        store.authenticate(key)


def test_the_servers_secret_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = load_secret(path, may_create=True)
    assert len(made) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_secret(path, may_create=True) == made
    assert [item.name for item in tmp_path.iterdir()] == ["secret"]
    path.chmod(0o644)
    with pytest.raises(InvalidSettingsError, match="can be read by others"):
        load_secret(path, may_create=False)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(InvalidSettingsError, match="less than 32 bytes"):
        load_secret(path, may_create=False)
    with pytest.raises(InvalidSettingsError, match="cannot read"):
        load_secret(tmp_path / "none", may_create=False)
