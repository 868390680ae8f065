"""Models: created once, shared, and there only for those whom they are for."""

from __future__ import annotations

import pytest
from penstock.registry.v1 import models_pb2

from registry.access.types import AccountRole, OtherTenant
from registry.models.types import ModelExists, ModelUnknown, VersionUnknown
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, NotFound, PenstockError
from runtime.identity import Role
from tests.registry.models.rig import NOWHERE, Desk, node, person


async def share(desk: Desk, *tenants: str) -> models_pb2.Model:
    request = models_pb2.ShareModelRequest(model="digits", shared_with=tenants)
    return (await desk.servicer.ShareModel(request, NOWHERE)).model


async def test_a_model_is_created_and_listed(desk: Desk) -> None:
    created = await desk.create("letters", "globex", ["acme"])
    assert (created.tenant, list(created.shared_with), created.description) == ("globex", ["acme"], "reads digits")
    assert created.created_at_ms == int(desk.ground.clock.now_s * 1000)
    assert created.generation == 1
    assert await desk.model("letters") == created
    assert [model.model for model in await desk.models()] == ["digits", "letters"]
    assert [model.model for model in await desk.models("globex")] == ["letters"]
    assert ("model.create", "letters", "done") in await desk.ground.actions()
    assert await desk.told() == 2


async def test_a_model_is_created_once(desk: Desk) -> None:
    for tenant in ("acme", "globex"):
        with pytest.raises(ModelExists):
            await desk.create("digits", tenant)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "-a", "a" * 129, "ä", "a\0"])
async def test_a_models_name_fits_paths_and_keys(sqlite_desk: Desk, name: str) -> None:
    with pytest.raises(InvalidArgument, match="model name"):
        await sqlite_desk.create(name)


async def test_what_is_said_of_a_model_is_checked(sqlite_desk: Desk) -> None:
    for request, words in (
        (models_pb2.CreateModelRequest(model="x", description="a\0b"), "control characters"),
        (models_pb2.CreateModelRequest(model="x", description="a" * 5000), "5000"),
        (models_pb2.CreateModelRequest(model="x", shared_with=["a b"]), "shared with"),
        (models_pb2.CreateModelRequest(model="x", shared_with=[f"t{n}" for n in range(1001)]), "1001 tenants"),
        (models_pb2.CreateModelRequest(model="x", tenant="A\0"), "tenant"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await sqlite_desk.servicer.CreateModel(request, NOWHERE)
    with pytest.raises(NotFound, match="initech"):
        await sqlite_desk.create("x", "initech")


async def test_without_a_name_a_model_is_the_callers_tenants(sqlite_desk: Desk) -> None:
    with sqlite_desk.called_by(person("globex")):
        assert (await sqlite_desk.create("letters", "")).tenant == "globex"
        with pytest.raises(OtherTenant):
            await sqlite_desk.create("more", "acme")
    assert (await sqlite_desk.create("more", "")).tenant == "default"


async def test_sharing_replaces_the_list(desk: Desk) -> None:
    assert list((await share(desk, "globex", "default")).shared_with) == ["default", "globex"]
    before = (await desk.told(), (await desk.model()).generation)
    assert list((await share(desk, "default", "globex")).shared_with) == ["default", "globex"]
    assert (await desk.told(), (await desk.model()).generation) == before, "nothing is another"
    assert not (await share(desk)).shared_with
    assert await desk.told() == before[0] + 1
    with desk.called_by(person("globex")), pytest.raises(ModelUnknown):
        await share(desk, "*")


async def test_a_model_is_there_for_its_tenant_and_those_it_is_shared_with(desk: Desk) -> None:
    (published,) = await desk.publish(1)
    with desk.called_by(person("globex", AccountRole.CALLER)):
        assert await desk.models() == []
        assert await desk.models("acme") == []
        for asking in (desk.get("1"), desk.get(), desk.history()):
            with pytest.raises(ModelUnknown):
                await asking
        with pytest.raises(VersionUnknown) as refused:
            await desk.get(model="", digest=published.digest)
        assert "digits" not in refused.value.message
    await share(desk, "globex")
    with desk.called_by(person("globex", AccountRole.CALLER)):
        assert [model.model for model in await desk.models()] == ["digits"]
        assert (await desk.get("1")).version == published
    await share(desk, "*")
    with desk.called_by(person("default", AccountRole.AUDITOR)):
        assert (await desk.get()).version == published


async def test_whom_else_a_model_is_shared_with_is_its_owners_business(sqlite_desk: Desk) -> None:
    await share(sqlite_desk, "globex", "initech", "*")
    for who, seen in ((person("globex"), ["*", "globex"]), (person("acme"), ["*", "globex", "initech"])):
        with sqlite_desk.called_by(who):
            assert list((await sqlite_desk.model()).shared_with) == seen
    with sqlite_desk.called_by(person("globex")), pytest.raises(OtherTenant):
        await share(sqlite_desk)


async def test_a_key_for_some_models_sees_no_others(sqlite_desk: Desk) -> None:
    await sqlite_desk.create("letters")
    await sqlite_desk.publish(1)
    with sqlite_desk.called_by(person("acme", AccountRole.CALLER, "letters")):
        assert [model.model for model in await sqlite_desk.models()] == ["letters"]
        with pytest.raises(ModelUnknown):
            await sqlite_desk.get("1")


async def test_a_worker_loads_for_the_tenants_it_serves(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    with sqlite_desk.called_by(node(Role.WORKER, "globex")):
        with pytest.raises(OtherTenant, match="globex"):
            await sqlite_desk.get("1")
        assert await sqlite_desk.models() == []
    for tenants in ((), ("acme",), ("globex", "acme")):
        with sqlite_desk.called_by(node(Role.WORKER, *tenants)):
            assert await sqlite_desk.number("1") == "1"
    await share(sqlite_desk, "globex")
    with sqlite_desk.called_by(node(Role.WORKER, "globex")):
        assert await sqlite_desk.number() == "1"


async def test_the_newest_is_the_highest_number(desk: Desk) -> None:
    await desk.publish(2, 10, 9)
    assert await desk.number() == "10"
    assert [version.version for version in (await desk.model()).versions] == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (models_pb2.GetVersionRequest(model="digits", version="7"), VersionUnknown),
        (models_pb2.GetVersionRequest(model="digits"), VersionUnknown),
        (models_pb2.GetVersionRequest(model="digits", version="canary"), VersionUnknown),
        (models_pb2.GetVersionRequest(model="unknown"), ModelUnknown),
        (models_pb2.GetVersionRequest(digest="0" * 64), VersionUnknown),
        (models_pb2.GetVersionRequest(digest="short"), InvalidArgument),
        (models_pb2.GetVersionRequest(model="digits", version="latest"), InvalidArgument),
        (models_pb2.GetVersionRequest(model="digits", version="01"), InvalidArgument),
        (models_pb2.GetVersionRequest(model="a\0"), InvalidArgument),
        (models_pb2.GetVersionRequest(), InvalidArgument),
    ],
)
async def test_what_is_not_there_is_said_so(
    sqlite_desk: Desk, ask: models_pb2.GetVersionRequest, expected: type[PenstockError]
) -> None:
    with pytest.raises(expected):
        await sqlite_desk.servicer.GetVersion(ask, NOWHERE)


async def test_a_digest_is_of_the_model_that_is_named(sqlite_desk: Desk) -> None:
    (published,) = await sqlite_desk.publish(1)
    with pytest.raises(VersionUnknown):
        await sqlite_desk.get(model="letters", digest=published.digest)


async def test_an_altered_model_is_not_handed_out(desk: Desk) -> None:
    await desk.publish(1)
    await desk.ground.execute("UPDATE models SET shared_with = '[\"*\"]'")
    for asking in (desk.get("1"), desk.publish(2), share(desk)):
        with pytest.raises(RowAltered, match="models"):
            await asking
    assert await desk.models() == []


async def test_many_models_are_listed_with_what_is_theirs(sqlite_desk: Desk) -> None:
    for number in range(30):
        await sqlite_desk.create(f"m{number:02}")
        await sqlite_desk.publish(number + 1, model=f"m{number:02}")
    listed = await sqlite_desk.models()
    assert [model.model for model in listed] == ["digits", *(f"m{number:02}" for number in range(30))]
    assert [[version.version for version in model.versions] for model in listed[1:]] == [[str(n + 1)] for n in range(30)]
