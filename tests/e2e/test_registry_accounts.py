"""Accounts as people and programs meet them: over HTTP/JSON through Envoy, and with keys at the gateway."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.support.adding import adding
from tests.support.commands import done, refused
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import RunningMesh

WITHIN_S = 1.0
"""In which every cache follows the registry."""

ATTEMPTS = 10
"""Wrong passwords for one name before it is throttled."""


class People:
    """Users who log in over the edge, and everything secret that came with them."""

    def __init__(self, mesh: RunningMesh, http: httpx.AsyncClient) -> None:
        self.mesh, self.http = mesh, http
        self.known: list[str] = []

    async def make(self, name: str, role: str = "owner", tenant: str = "default") -> str:
        """A user of that name; its password."""
        password = f"pass phrase {secrets.token_hex(8)}"
        self.known.append(password)
        words = ("users", "create", name, "--role", role, "--tenant", tenant)
        told = await done(self.mesh, *words, typed=f"{password}\n")
        assert f"created {name}, {role} of tenant {tenant}" in told
        return password

    async def log_in(self, name: str, password: str) -> httpx.Response:
        return await self.http.post("/v1/registry/sessions", json={"name": name, "password": password})

    async def session(self, name: str, role: str = "owner", tenant: str = "default") -> dict[str, str]:
        """Headers of a user who was made and has logged in."""
        answer = await self.log_in(name, await self.make(name, role, tenant))
        assert answer.status_code == 200, answer.text
        self.known.append(answer.json()["session"])
        return {"authorization": f"Bearer {self.known[-1]}"}

    async def get(self, path: str, headers: dict[str, str]) -> httpx.Response:
        return await self.http.get(f"/v1/registry/{path}", headers=headers)

    async def post(self, path: str, headers: dict[str, str], **fields: object) -> httpx.Response:
        return await self.http.post(f"/v1/registry/{path}", headers=headers, json=fields)

    async def key(self, headers: dict[str, str], **fields: object) -> tuple[str, str]:
        """Id and secret of a key that this user makes."""
        answer = await self.post("keys", headers, **{"name": "of a test", "role": "caller", **fields})
        assert answer.status_code == 200, answer.text
        self.known.append(answer.json()["secret"])
        return answer.json()["key"]["key_id"], self.known[-1]


@pytest.fixture
async def gateway(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    async with gateway_of(mesh) as gateway:
        yield gateway


@pytest.fixture
async def people(mesh: RunningMesh) -> AsyncIterator[People]:
    """And afterwards: nothing secret of what the test did lies anywhere in the mesh's folder."""
    async with httpx.AsyncClient(base_url=mesh.http_url, timeout=20) as http:
        people = People(mesh, http)
        yield people
    found = [f"{secret[:12]}… in {file}" for file in files_of(mesh) for secret in people.known if holds(file, secret)]
    assert not found
    assert people.known, "a test without a secret has none to lose"


def files_of(mesh: RunningMesh) -> list[Path]:
    """Logs, databases, etcd's and all else."""
    files = [file for file in mesh.data.rglob("*") if file.is_file()]
    assert any(file.name == "registry.log" for file in files)
    return [*files, mesh.data.with_name(f"{mesh.data.name}.out")]


def holds(file: Path, secret: str) -> bool:
    try:
        return secret.encode() in file.read_bytes()
    except FileNotFoundError:
        return False  # gone since it was listed


async def test_a_user_logs_in_and_out_over_http(people: People) -> None:
    headers = await people.session("ada")
    me = await people.get("me", headers)
    assert (me.status_code, me.json()["kind"], me.json()["tenant"], me.json()["role"]) == (200, "user", "default", "owner")
    assert (await people.post("sessions:end", headers)).status_code == 200
    assert (await people.get("me", headers)).status_code == 401
    assert (await people.get("me", {})).status_code == 401
    assert (await people.get("me", {"authorization": f"Bearer ss-pn-{secrets.token_hex(32)}"})).status_code == 401


async def test_a_new_password_or_being_disabled_ends_sessions(people: People) -> None:
    headers = await people.session("grace")
    changed = f"another {secrets.token_hex(8)}"
    people.known.append(changed)
    await done(people.mesh, "users", "update", "grace", "--password", typed=f"{changed}\n")
    assert (await people.get("me", headers)).status_code == 401
    answer = await people.log_in("grace", changed)
    people.known.append(answer.json()["session"])
    again = {"authorization": f"Bearer {people.known[-1]}"}
    assert (await people.get("me", again)).status_code == 200
    await done(people.mesh, "users", "update", "grace", "--disable")
    assert (await people.get("me", again)).status_code == 401
    assert (await people.log_in("grace", changed)).status_code == 401


async def test_roles_are_kept_apart(people: People, gateway: Gateway) -> None:
    auditor = await people.session("edsger", "auditor")
    publisher = await people.session("barbara", "publisher")
    assert (await people.get("keys", auditor)).status_code == 200
    assert (await people.get("audit", auditor)).status_code == 200
    assert (await people.post("keys", auditor, name="k", role="caller")).status_code == 403
    assert (await people.get("models", publisher)).status_code == 200
    assert (await people.get("audit", publisher)).status_code == 403
    assert (await people.post("keys", publisher, name="k", role="caller")).status_code == 403
    for headers in (auditor, publisher):
        assert (await people.post("users", headers, name="x", role="owner", password="p" * 20)).status_code == 403
        assert (await people.post("tenants", headers, tenant="mine")).status_code == 403
        assert (await people.get("nodes", headers)).status_code == 403
        assert (await people.post("join-tokens", headers, role="worker")).status_code == 403
    owner = await people.session("donald")
    assert (await people.post("tenants", owner, tenant="mine")).status_code == 403, "tenants are the operator's"
    assert (await people.post("keys", owner, name="k", role="caller", scopes=["files:admin"])).status_code in (400, 403)
    shown = await done(people.mesh, "audit", "--action", "key.create")
    assert shown.count("refused") >= 2


async def test_another_tenants_owner_sees_nothing_of_this_one(people: People, gateway: Gateway, tmp_path: Path) -> None:
    owner = await people.session("alan")
    key_id, _ = await people.key(owner)
    await done(people.mesh, "models", "push", str(adding(tmp_path / "own", "own-things", 1)))
    await done(people.mesh, "tenants", "create", "strangers")
    stranger = await people.session("mallory", tenant="strangers")
    models = (await people.get("models", stranger)).json()["models"]
    assert "own-things" not in [model["model"] for model in models]
    assert all(model["shared_with"] == ["*"] for model in models), "such as the demo's"
    assert (await people.get("keys", stranger)).json().get("keys", []) == []
    users = (await people.get("users", stranger)).json()["users"]
    assert [user["name"] for user in users] == ["mallory"]
    tenants = {entry.get("tenant") for entry in (await people.get("audit", stranger)).json()["entries"]}
    assert tenants == {"strangers"}
    for path in ("keys?tenant=default", "users?tenant=default", "audit?tenant=default"):
        assert (await people.get(path, stranger)).status_code == 403
    assert (await people.get("models/own-things/version", stranger)).status_code in (403, 404)
    assert (await people.post(f"keys/{key_id}:revoke", stranger)).status_code in (403, 404)
    assert (await people.post("keys", stranger, tenant="default", name="k", role="caller")).status_code == 403
    own_id, secret = await people.key(stranger)
    hidden = (grpc.StatusCode.NOT_FOUND,)
    assert (await gateway.with_key(secret).refusal("own-things"))[0] in hidden
    assert [key["key_id"] for key in (await people.get("keys", stranger)).json()["keys"]] == [own_id]


async def test_a_key_is_rotated_with_an_overlap_and_revoked_within_a_second(
    people: People, gateway: Gateway, tmp_path: Path
) -> None:
    await done(people.mesh, "models", "push", str(adding(tmp_path / "keyed", "keyed", 3)))
    owner = await people.session("katherine")
    old_id, old_secret = await people.key(owner)
    old = gateway.with_key(old_secret)
    assert await old.ask("keyed") == Answer(3.0, "1")

    rotated = (await people.post(f"keys/{old_id}:rotate", owner, overlap_s=3600)).json()
    people.known.append(rotated["secret"])
    new, new_id = gateway.with_key(rotated["secret"]), rotated["key"]["key_id"]
    assert rotated["old_key"]["rotated_to"] == new_id
    assert await new.ask("keyed") == await old.ask("keyed") == Answer(3.0, "1")

    await done(people.mesh, "keys", "revoke", old_id)
    assert await old.until_refused("keyed") < WITHIN_S
    assert (await old.refusal("keyed"))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert await new.ask("keyed") == Answer(3.0, "1")

    ended = (await people.post(f"keys/{new_id}:rotate", owner, overlap_s=0)).json()
    people.known.append(ended["secret"])
    assert await new.until_refused("keyed") < WITHIN_S
    assert await gateway.with_key(ended["secret"]).ask("keyed") == Answer(3.0, "1")
    assert "was rotated already" in await refused(people.mesh, "keys", "rotate", new_id)

    shown = await done(people.mesh, "audit", "--action", "key.")
    lines = [line for line in shown.splitlines() if old_id in line or new_id in line]
    told = [next(word for word in line.split() if word.startswith("key.")) for line in reversed(lines)]
    assert told == ["key.create", "key.rotate", "key.revoke", "key.rotate"]


async def test_a_key_for_some_models_and_scopes_gets_no_further(people: People, gateway: Gateway, tmp_path: Path) -> None:
    for name in ("first-choice", "second-choice"):
        await done(people.mesh, "models", "push", str(adding(tmp_path / name, name, 1)))
    owner = await people.session("emmy")
    _, secret = await people.key(owner, allowed_models=["first-choice"], lifetime_s=3600)
    bound = gateway.with_key(secret)
    assert await bound.ask("first-choice") == Answer(1.0, "1")
    assert (await bound.refusal("second-choice"))[0] is grpc.StatusCode.PERMISSION_DENIED
    _, reading = await people.key(owner, scopes=["models:read"])
    assert (await gateway.with_key(reading).refusal("first-choice"))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert (await people.get("models", {"authorization": f"Bearer {reading}"})).status_code == 200


async def test_aliases_are_moved_over_http_by_those_who_may(people: People, gateway: Gateway, tmp_path: Path) -> None:
    for amount in (1, 2):
        await done(people.mesh, "models", "push", str(adding(tmp_path / str(amount), "moved-by-http", amount)))
    caller, publisher = await people.session("tim", "caller"), await people.session("vint", "publisher")
    path = "models/moved-by-http/aliases/stable:move"
    assert (await people.post(path, caller, version="1")).status_code == 403
    moved = await people.post(path, publisher, version="1", expected_version="", immediate=True)
    assert (moved.status_code, moved.json()["alias"]["version"]) == (200, "1"), moved.text
    assert await gateway.until_only("moved-by-http", Answer(1.0, "1")) < WITHIN_S
    assert (await people.post(path, publisher, version="2", expected_version="2")).status_code == 409
    assert (await people.post(path, publisher, version="2", expected_version="1", immediate=True)).status_code == 200
    history = (await people.get("models/moved-by-http/moves", publisher)).json()["moves"]
    assert [(move["from_version"], move["to_version"]) for move in history if "from_version" in move] == [("1", "2")]
    assert "vint" not in history[0]["by"]


async def test_wrong_passwords_are_throttled_by_name(people: People) -> None:
    password = await people.make("sophie")
    for _ in range(ATTEMPTS):
        assert (await people.log_in("sophie", "not the pass phrase")).status_code == 401
    refusal = await people.log_in("sophie", password)
    assert refusal.status_code == 429, "even the right one waits now"
    answer = await people.log_in("nobody-of-this-name", "not the pass phrase")
    assert answer.status_code == 401, "others do not"
    shown = await done(people.mesh, "audit", "--action", "login")
    assert "refused" in shown
