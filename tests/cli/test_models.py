"""`penstock models …` against a registry and a scheduler, from a folder to an alias that moved when its target was warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from cli.aliases import (
    AliasNotMoved,
    MoveOptions,
    alias_word,
    move_alias,
    promote_alias,
    remove_alias,
    roll_back_alias,
    show_history,
)
from cli.models import PushOptions, load_model, push_folder, share_model, show_models, withdraw_version
from cli.publish import FILES_AT_ONCE, Published, publish_folder, publish_model
from cli.show import show_model
from runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from runtime.identity import Role
from runtime.model_folder import read_model_folder
from tests.cli.models_mesh import Mesh, opened_mesh
from tests.support.waiting import eventually

MODEL_TOML = """
name = "digits"
engine = "onnx"
description = "reads [bold]digits[/]"
max_batch_size = 8

[[inputs]]
name = "image"
datatype = "FP32"
shape = [1, 28, 28]

[[outputs]]
name = "scores"
datatype = "FP32"
shape = [10]
"""


def write_folder(folder: Path, content: str = "weights", name: str = "digits") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(MODEL_TOML.replace('"digits"', f'"{name}"'))
    (folder / "model.onnx").write_bytes(content.encode() * 5_000)
    for number in range(3):
        (folder / f"part{number}.bin").write_bytes(f"{content}{number}".encode())
    return folder


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path / "mesh") as made, AsyncExitStack() as stack:
        for name in ("one", "two"):
            await stack.enter_async_context(made.worker(name))
        await eventually(lambda: len(made.scheduler.fleet.members) == 2)
        yield made


async def publish(mesh: Mesh, folder: Path, version: str = "", **options: str) -> Published:
    async with mesh.profile.registry_channel() as registry:
        return await publish_folder(registry, mesh.identities[Role.OPERATOR].signing_key, folder, version, **options)  # type: ignore[arg-type]


async def aliases(mesh: Mesh) -> dict[str, tuple[str, int]]:
    async with mesh.profile.registry_channel() as registry:
        stub = models_pb2_grpc.ModelServiceStub(registry)
        [model] = (await stub.ListModels(models_pb2.ListModelsRequest())).models
        return {alias.alias: (alias.version, alias.weight) for alias in model.aliases}


async def test_push_publishes_loads_and_names(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "digits")
    await push_folder(mesh.profile, folder, PushOptions(copies=2, alias=alias_word("stable"), shared_with=("acme",)))
    said = capsys.readouterr().out
    assert "published digits version 1 sha256" in said
    assert "2 of 2 copies are ready" in said
    assert "digits: stable is version 1" in said
    await push_folder(mesh.profile, folder, PushOptions())
    assert "unchanged, already published as digits version 1" in capsys.readouterr().out

    await show_models(mesh.profile)
    said = capsys.readouterr().out
    assert "stable" in said
    assert "2 READY" in said


async def test_a_canary_is_warmed_promoted_and_taken_back(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, profile = tmp_path / "digits", mesh.profile
    await push_folder(profile, write_folder(folder), PushOptions(copies=2, alias=alias_word("stable")))
    await push_folder(profile, write_folder(folder, "better"), PushOptions(alias=alias_word("canary=10")))
    assert await aliases(mesh) == {"stable": ("1", 0), "canary": ("2", 10)}
    assert {wish.version: wish.copies for wish in mesh.scheduler.control.wishes()} == {"1": 2, "2": 2}, "as many as stable's"

    await move_alias(profile, "digits", alias_word("canary=50"), "", MoveOptions())
    assert (await aliases(mesh))["canary"] == ("2", 50), "its version stays"
    await promote_alias(profile, "digits", "canary", "stable", MoveOptions(expected="1"))
    assert await aliases(mesh) == {"stable": ("2", 0)}
    await roll_back_alias(profile, "digits", "stable", MoveOptions())
    assert await aliases(mesh) == {"stable": ("1", 0)}
    with pytest.raises(grpc.aio.AioRpcError, match="points at version 1"):
        await roll_back_alias(profile, "digits", "stable", MoveOptions(expected="2"))
    capsys.readouterr()
    await show_history(profile, "digits", "", 100)
    said = capsys.readouterr().out
    assert [said.count(word) for word in ("promoted", "rolled back", "removed")] == [2, 1, 1], "removed: promoted to stable"
    await remove_alias(profile, "digits", alias_word("stable"), "1")
    assert await aliases(mesh) == {}


async def test_a_version_that_no_worker_loads_leaves_the_alias_where_it_is(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, profile = tmp_path / "digits", mesh.profile
    await push_folder(profile, write_folder(folder), PushOptions(copies=2, alias=alias_word("stable")))
    mesh.broken["2"] = "an output is missing"
    await push_folder(profile, write_folder(folder, "worse"), PushOptions())
    with pytest.raises(AliasNotMoved, match=r"did not move to version 2: version 2 did not load.*an output is missing"):
        await move_alias(profile, "digits", alias_word("stable"), "2", MoveOptions())
    assert await aliases(mesh) == {"stable": ("1", 0)}
    await eventually(lambda: {wish.version: wish.copies for wish in mesh.scheduler.control.wishes()} == {"1": 2, "2": 0})
    with pytest.raises(FailedPrecondition, match="did not load on 2 of 2 workers: an output is missing"):
        await load_model(profile, "digits", "2", 2, wait=True)
    await move_alias(profile, "digits", alias_word("stable"), "2", MoveOptions(immediate=True))
    assert await aliases(mesh) == {"stable": ("2", 0)}, "who says --now has it"


async def test_not_waiting_says_what_is_under_way(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, profile = tmp_path / "digits", mesh.profile
    await push_folder(profile, write_folder(folder), PushOptions(copies=1, alias=alias_word("stable")))
    await push_folder(profile, write_folder(folder, "better"), PushOptions())
    capsys.readouterr()
    await move_alias(profile, "digits", alias_word("stable"), "2", MoveOptions(wait=False))
    assert "digits: stable is version 1; version 2 is getting warm first" in capsys.readouterr().out
    async with asyncio.timeout(15):
        while await aliases(mesh) != {"stable": ("2", 0)}:
            await asyncio.sleep(0.02)


async def test_a_withdrawn_version_leaves_the_fleet_and_cannot_be_loaded(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await push_folder(mesh.profile, write_folder(tmp_path / "digits"), PushOptions(copies=2))
    await withdraw_version(mesh.profile, "digits", "1", "it leaks")
    assert "withdrew digits version 1: it leaks" in capsys.readouterr().out
    await eventually(lambda: not any(member.worker.copies for member in mesh.scheduler.fleet.members.values()))
    with pytest.raises(grpc.aio.AioRpcError, match="was withdrawn"):
        await load_model(mesh.profile, "digits", "1", 1, wait=True)
    published = await publish(mesh, tmp_path / "digits")
    assert (published.version, published.new) == ("2", True), "the number stays taken, the content may come again"


async def test_show_is_a_tree(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await push_folder(mesh.profile, write_folder(tmp_path / "digits"), PushOptions(copies=1, alias=alias_word("stable")))
    capsys.readouterr()
    await show_model(mesh.profile, "digits", "")
    said = capsys.readouterr().out
    for expected in ("stable → version 1", "image  FP32  [1 × 28 × 28]", "model.onnx", "READY", "reads [bold]digits[/]"):
        assert expected in said
    await show_model(mesh.profile, "digits", "stable")
    assert "version 1" in capsys.readouterr().out
    with pytest.raises(NotFound, match="no version '7'; versions: 1; aliases: stable"):
        await show_model(mesh.profile, "digits", "7")
    with pytest.raises(NotFound, match="no model 'other'"):
        await show_model(mesh.profile, "other", "")


async def test_sharing(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await publish(mesh, write_folder(tmp_path / "digits"), tenant="acme")
    capsys.readouterr()
    await share_model(mesh.profile, "digits", ["globex"], private=False)
    assert "belongs to tenant acme and is shared with globex" in capsys.readouterr().out
    await share_model(mesh.profile, "digits", ["*"], private=False)
    assert "every tenant" in capsys.readouterr().out
    await share_model(mesh.profile, "digits", [], private=True)
    assert "nobody" in capsys.readouterr().out
    for both in ([], False), (["globex"], True):
        with pytest.raises(InvalidArgument, match="--private"):
            await share_model(mesh.profile, "digits", both[0], private=both[1])


async def test_a_model_keeps_its_tenant(mesh: Mesh, tmp_path: Path) -> None:
    first = await publish(mesh, write_folder(tmp_path / "digits"), tenant="acme")
    again = await publish(mesh, write_folder(tmp_path / "digits", "better"))
    assert (first.tenant, again.tenant, again.version) == ("acme", "acme", "2")
    with pytest.raises(FailedPrecondition, match="belongs to tenant 'acme', not to 'globex'"):
        await publish(mesh, tmp_path / "digits", tenant="globex")


async def test_publishers_at_once_get_a_number_each(mesh: Mesh, tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / f"f{number}", f"content {number}") for number in range(4)]
    made = await asyncio.gather(*(publish(mesh, folder) for folder in folders))
    assert sorted(each.version for each in made) == ["1", "2", "3", "4"]
    assert len({each.digest for each in made}) == 4


async def test_progress_is_told_of_hashing_and_sending(mesh: Mesh, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    key = mesh.identities[Role.OPERATOR].signing_key
    read = read_model_folder(write_folder(tmp_path / "digits"))
    async with mesh.profile.registry_channel() as registry:
        await publish_model(registry, key, read, "", "", lambda *step: told.append(step))
    whole = {what for what, done_bytes, total_bytes in told if done_bytes == total_bytes}
    names = {file.path for file in read.files}
    assert whole == names | {f"{step} {name}" for step in ("hashing", "verifying") for name in names}
    assert len(names) > FILES_AT_ONCE


async def test_a_version_that_is_none_is_told_before_anything_is_sent(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="positive whole numbers"):
        await publish(mesh, write_folder(tmp_path / "digits"), "0")


@pytest.mark.parametrize("text", ["", "Stable", "canary=", "canary=101", "canary=1.5", "canary=-1", "9lives", "a b"])
def test_what_is_no_alias(text: str) -> None:
    with pytest.raises(InvalidArgument):
        alias_word(text)


def test_alias_words() -> None:
    assert (alias_word("canary=10").weight, alias_word("canary=10").weighed) == (10, True)
    assert (alias_word("stable").weight, alias_word("stable").weighed) == (0, False)
