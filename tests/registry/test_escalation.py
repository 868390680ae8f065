"""Nobody gets more than it was given: not by what it makes, changes, rotates, shows, or by how it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from registry.access.policy import ACCOUNT_SCOPES
from registry.access.types import AccountRole
from runtime.identity import NodeIdentity, Role
from tests.registry.callers import MODEL, Callers, callers_of
from tests.registry.front import METHODS, PASSWORD, Answer, Way, front_on, request_class

pytestmark = pytest.mark.asyncio(loop_scope="module")
METHOD = {name.partition("/")[2]: name for name in METHODS}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(tmp_path_factory: pytest.TempPathFactory, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Callers]:
    folder = tmp_path_factory.mktemp("escalation")
    async with front_on(str(folder / "registry.db"), folder, identities) as front:
        yield await callers_of(front, folder)


async def ask(callers: Callers, way: Way, method: str, **fields: Any) -> Answer:
    return await callers.front.call(way, METHOD[method], request_class(METHOD[method])(**fields))


async def reason(callers: Callers, way: Way, method: str, **fields: Any) -> str:
    """Why it is refused; empty: it is not."""
    error = (await ask(callers, way, method, **fields)).error
    return "" if error is None else error.reason


async def keyed(callers: Callers, **fields: Any) -> Way:
    return Way().bearing(await callers.key(**fields))


async def person(callers: Callers, name: str, role: str, tenant: str = "acme") -> tuple[Way, str]:
    """With a session, and the id."""
    user_id = await callers.front.user(name, role, tenant)
    return Way().bearing(await callers.front.session(name)), user_id


@pytest.mark.parametrize("column", ["pb", "ca", "au", "fw"])
async def test_who_is_no_owner_makes_nobody_and_changes_nobody(callers: Callers, column: str) -> None:
    for way in callers.ways[column]:
        who = (await ask(callers, way, "WhoAmI")).message
        for role in AccountRole:
            assert await reason(callers, way, "CreateKey", role=role.value) == "SCOPE_REQUIRED"
            wanted = {"name": "new@acme", "role": role.value, "password": PASSWORD}
            assert await reason(callers, way, "CreateUser", **wanted) == "SCOPE_REQUIRED"
            if who.kind == "user":
                assert await reason(callers, way, "UpdateUser", user_id=who.id, role=role.value) == "SCOPE_REQUIRED"
        for change in ({"role": "owner"}, {"password": "another long password"}, {"disabled": True}):
            assert await reason(callers, way, "UpdateUser", user_id=callers.acme.user_id, **change) == "SCOPE_REQUIRED"
        for method in ("RotateKey", "RevokeKey"):
            assert await reason(callers, way, method, key_id=callers.acme.key_id) == "SCOPE_REQUIRED"


async def test_a_lesser_owners_key_gives_no_more_than_it_has(callers: Callers) -> None:
    scopes = ["accounts:read", "accounts:write", "models:read"]
    way = await keyed(callers, role="owner", scopes=scopes)
    _, owner_id = await person(callers, "strong@acme", "owner")
    stronger = (await callers.key(role="owner")).split("-")[2]
    assert await reason(callers, way, "CreateKey", role="owner") == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateKey", role="owner", scopes=[*scopes, "infer"]) == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateKey", role="publisher") == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateUser", name="n@acme", role="caller", password=PASSWORD) == "MORE_THAN_OWN"
    assert await reason(callers, way, "RotateKey", key_id=stronger) == "MORE_THAN_OWN"
    for change in ({"role": "owner"}, {"role": "caller"}, {"password": "another long password"}, {"disabled": True}):
        assert await reason(callers, way, "UpdateUser", user_id=owner_id, **change) == "MORE_THAN_OWN"
    made = (await ask(callers, way, "CreateKey", role="owner", scopes=scopes)).message.key
    assert sorted(made.scopes) == sorted(scopes)
    assert await reason(callers, way, "RevokeKey", key_id=stronger) == "", "taking away gives nothing to anybody"


async def test_a_key_for_some_models_gives_access_to_no_others(callers: Callers) -> None:
    way = await keyed(callers, role="owner", allowed_models=["letters"])
    assert await reason(callers, way, "CreateKey", role="caller") == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateKey", role="caller", allowed_models=["letters", MODEL]) == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateKey", role="caller", allowed_models=["*"]) == "INVALID_ARGUMENT"
    assert await reason(callers, way, "CreateUser", name="n@acme", role="caller", password=PASSWORD) == "MORE_THAN_OWN"
    assert await reason(callers, way, "RotateKey", key_id=callers.acme.key_id) == "MORE_THAN_OWN"
    assert await reason(callers, way, "CreateKey", role="caller", allowed_models=["letters"]) == ""
    for model in (MODEL, "none-model"):
        assert await reason(callers, way, "MoveAlias", model=model, alias="canary", version="1") == "SCOPE_REQUIRED"
        assert await reason(callers, way, "CreateModel", model=model) == "SCOPE_REQUIRED"
        assert await reason(callers, way, "GetVersion", model=model) == "MODEL_UNKNOWN"


@pytest.mark.parametrize(
    "scope", ["files:admin", "tenants:write", "keys:resolve", "nodes:write", "signers:write", "aliases:settle"]
)
async def test_rights_over_the_mesh_are_in_no_key(callers: Callers, scope: str) -> None:
    for way in (callers.ways["ow"][0], callers.front.node()):
        for role in AccountRole:
            wanted = {"role": role.value, "scopes": [scope], "tenant": "acme"}
            assert await reason(callers, way, "CreateKey", **wanted) == "INVALID_ARGUMENT"


async def test_an_owner_makes_nobody_of_another_tenant(callers: Callers) -> None:
    for way in callers.ways["ow"]:
        for tenant in ("globex", "default", "initech", "ACME"):
            wanted = {"tenant": tenant, "role": "caller"}
            assert await reason(callers, way, "CreateKey", **wanted) == "OTHER_TENANT"
            assert await reason(callers, way, "CreateUser", name="n", password=PASSWORD, **wanted) == "OTHER_TENANT"
        made = (await ask(callers, way, "CreateKey", role="caller")).message.key
        assert made.tenant == "acme"


async def test_everybody_chooses_its_own_password_and_nobody_elses(callers: Callers) -> None:
    way, user_id = await person(callers, "own@acme", "caller")
    other, _ = await person(callers, "other@acme", "publisher")
    assert await reason(callers, other, "UpdateUser", user_id=user_id, password="another long password") == "SCOPE_REQUIRED"
    assert await reason(callers, way, "UpdateUser", user_id=user_id, password="short") == "INVALID_ARGUMENT"
    assert await reason(callers, way, "UpdateUser", user_id=user_id, password=PASSWORD, role="owner") == "SCOPE_REQUIRED"
    assert await reason(callers, way, "UpdateUser", user_id=user_id, password="another long password") == ""
    assert await reason(callers, way, "WhoAmI") == "CREDENTIALS_REFUSED", "the session ended with the old password"


async def test_a_lowered_role_counts_at_once(callers: Callers) -> None:
    way, user_id = await person(callers, "lowered@acme", "owner")
    assert await reason(callers, way, "ListUsers") == ""
    await callers.front.made("AccountService/UpdateUser", user_id=user_id, role="caller")
    for method, fields in (
        ("ListUsers", {}),
        ("CreateKey", {"role": "owner"}),
        ("UpdateUser", {"user_id": user_id, "role": "owner"}),
    ):
        assert await reason(callers, way, method, **fields) == "SCOPE_REQUIRED"
    await callers.front.made("AccountService/UpdateUser", user_id=user_id, disabled=True)
    assert await reason(callers, way, "WhoAmI") == "CREDENTIALS_REFUSED"
    await callers.front.made("AccountService/UpdateUser", user_id=user_id, disabled=False)
    assert await reason(callers, way, "WhoAmI") == "CREDENTIALS_REFUSED", "what was ended does not come back"


async def test_a_rotated_key_may_and_lasts_no_more(callers: Callers) -> None:
    fields = {"role": "publisher", "scopes": ["infer"], "allowed_models": ["letters"], "lifetime_s": 3600}
    old = await callers.front.made("AccountService/CreateKey", tenant="acme", **fields)
    new = (await ask(callers, callers.ways["ow"][0], "RotateKey", key_id=old.key.key_id)).message
    for name in ("tenant", "role", "scopes", "allowed_models", "expires_at_ms"):
        assert getattr(new.key, name) == getattr(old.key, name)
    assert await reason(callers, Way().bearing(old.secret), "WhoAmI") == "CREDENTIALS_REFUSED"


async def test_a_nodes_certificate_is_not_added_to_a_bearers_rights(callers: Callers) -> None:
    """Nor the other way round: a worker that holds an owner's key stays a worker."""
    front, owners = callers.front, await callers.key(role="owner")
    for role in (Role.WORKER, Role.SCHEDULER, Role.REGISTRY):
        for way in (front.node(role).bearing(owners), front.through_envoy(front.identities[role]).bearing(owners)):
            assert (await ask(callers, way, "WhoAmI")).message.role == role.value
            assert await reason(callers, way, "CreateKey", role="caller") == "SCOPE_REQUIRED"
    for way in (front.node(Role.GATEWAY).bearing(owners), front.through_envoy(front.identities[Role.GATEWAY]).bearing(owners)):
        assert (await ask(callers, way, "WhoAmI")).message.role == "owner"
        assert await reason(callers, way, "ResolveKey", secret_sha256=bytes(32)) == "SCOPE_REQUIRED"


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.SCHEDULER, Role.WORKER, Role.REGISTRY])
async def test_only_envoy_tells_whose_certificate_it_saw(callers: Callers, role: Role) -> None:
    operator = callers.front.through_envoy(callers.front.identities[Role.OPERATOR])
    way = Way(callers.front.identities[role], operator.metadata)
    assert (await ask(callers, way, "WhoAmI")).message.role == role.value
    assert await reason(callers, way, "CreateTenant", tenant="umbrella") == "SCOPE_REQUIRED"


async def test_two_bearers_are_none(callers: Callers) -> None:
    caller, owner = await callers.key(role="caller"), await callers.key(role="owner")
    for way in (Way(), callers.front.through_envoy(None), callers.front.node(Role.GATEWAY)):
        both = Way(way.identity, (*way.bearing(caller).metadata, ("x-api-key", owner)))
        assert await reason(callers, both, "WhoAmI") == "CREDENTIALS_REFUSED"
        assert (await ask(callers, Way(way.identity, (("x-api-key", caller),)), "WhoAmI")).message.role == "caller"


async def test_a_session_is_no_key_and_a_key_no_session(callers: Callers) -> None:
    session = await callers.front.session("owner@acme")
    key = await callers.key(role="owner")
    ids = [key.split("-")[2], callers.acme.user_id, session[6:], key.rpartition("-")[2]]
    twisted = [f"sk-pn-{session[6:]}", f"ss-pn-{key[6:]}", *ids, key.upper(), key + "0", session[:-1]]
    for token in twisted:
        assert await reason(callers, Way().bearing(token), "WhoAmI") == "CREDENTIALS_REFUSED"


@pytest.mark.parametrize("name", ["%", "owner@%", "_wner@acme", "owner@acme' OR '1'='1", "owner@acme'--", "*"])
async def test_wildcards_and_quotes_are_letters(callers: Callers, name: str) -> None:
    assert await reason(callers, Way(), "LogIn", name=name, password=PASSWORD) == "LOGIN_REFUSED"
    owner = callers.ways["ow"][0]
    for field in ("actor_id", "action", "subject"):
        assert not (await ask(callers, owner, "ListEntries", **{field: name})).message.entries
    assert await reason(callers, callers.front.node(), "ListModels", tenant=name) == "INVALID_ARGUMENT"
    assert await reason(callers, owner, "RevokeKey", key_id=name) == "KEY_UNKNOWN"
    assert await reason(callers, owner, "UpdateUser", user_id=name, role="owner") == "USER_UNKNOWN"
    assert await reason(callers, owner, "GetVersion", model=name) == "INVALID_ARGUMENT"
    assert await reason(callers, callers.front.node(), "CreateTenant", tenant=name) == "INVALID_ARGUMENT"


async def test_a_tenants_trail_is_its_own(callers: Callers) -> None:
    owner = callers.ways["ow"][0]
    for tenant in ("", "acme"):
        entries = (await ask(callers, owner, "ListEntries", tenant=tenant, limit=1000)).message.entries
        assert {entry.tenant for entry in entries} == {"acme"}


async def test_no_account_may_what_is_the_meshs() -> None:
    meshs = {
        "files:fetch",
        "files:admin",
        "aliases:settle",
        "tenants:write",
        "keys:resolve",
        "incidents:report",
        "signers:write",
    }
    meshs |= {"nodes:read", "nodes:write", "nodes:renew"}
    assert not {scope.value for scopes in ACCOUNT_SCOPES.values() for scope in scopes} & meshs
