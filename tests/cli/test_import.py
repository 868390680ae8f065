"""`penstock models import`: a repository of Triton's becomes versions in a real registry, and what cannot be moved is named."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2, models_pb2_grpc
from rich.console import Console
from typer.testing import CliRunner

from cli.__main__ import app
from cli.import_models import ImportIncomplete, import_models, show_models
from cli.import_reading import NothingToImport, Wanted, read_models
from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.ids import ModelName
from runtime.manifests import verify_manifest
from tests.cli.models_mesh import Mesh, opened_mesh
from tests.runtime.triton_repository import PLAIN, plain, repository, with_external_data, write
from tests.support.waiting import eventually
from tests.worker.life.test_repository import described
from tests.worker.onnx_models import identity

GOOD = ["bare", "folder", "labelled", "plain", "sum", "unbatched", "versions"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path / "mesh") as made, AsyncExitStack() as stack:
        await stack.enter_async_context(made.worker("one"))
        await eventually(lambda: len(made.scheduler.fleet.members) == 1)
        yield made


class Terminal:
    """What a person sees."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.console = Console(file=self._stream, width=220)

    @property
    def text(self) -> str:
        return self._stream.getvalue()


async def registered(mesh: Mesh) -> dict[str, list[str]]:
    async with mesh.profile.registry_channel() as registry:
        answer = await models_pb2_grpc.ModelServiceStub(registry).ListModels(models_pb2.ListModelsRequest())
        return {model.model: [version.version for version in model.versions] for model in answer.models}


async def manifest(mesh: Mesh, model: str, version: str = "") -> models_pb2.Manifest:
    async with mesh.profile.registry_channel() as registry:
        stub = models_pb2_grpc.ModelServiceStub(registry)
        answer = await stub.GetVersion(models_pb2.GetVersionRequest(model=model, version=version))
    return verify_manifest(answer.manifest, {mesh.identities[Role.OPERATOR].ed25519_public_key}).manifest


async def test_a_repository_moves_in_and_again_changes_nothing(mesh: Mesh, models: Path) -> None:
    terminal = Terminal()
    with pytest.raises(ImportIncomplete, match="2 of 9 models were not imported, or not whole: pipeline, wrong"):
        await import_models(mesh.profile, models, Wanted(), 1, terminal.console)
    assert await registered(mesh) == {
        "bare": ["1"],
        "folder": ["1"],
        "labelled": ["1"],
        "plain": ["1"],
        "sum": ["2"],
        "unbatched": ["1"],
        "versions": ["3", "10"],
    }
    labelled = await manifest(mesh, "labelled")
    assert [file.path for file in labelled.files] == ["model.onnx", "warmup/x.raw"]
    assert list(labelled.outputs[0].labels) == ["no", "yes"]
    assert (await manifest(mesh, "sum")).sequence_batching.controls[0].input == "START"
    for words in ("refused wrong", "refused pipeline", "ensembles", "picture in the", "published versions version 10"):
        assert words in terminal.text, terminal.text
    assert "pipeline: " in terminal.text
    await eventually(lambda: {wish.model for wish in mesh.scheduler.control.wishes()} == set(GOOD))
    newest = {wish.model: wish.version for wish in mesh.scheduler.control.wishes()}
    assert newest[ModelName("versions")] == "10"

    again = Terminal()
    with pytest.raises(ImportIncomplete):
        await import_models(mesh.profile, models, Wanted(), 0, again.console)
    assert again.text.count("already published") == 8
    assert (await registered(mesh))["versions"] == ["3", "10"]


async def test_a_version_that_is_taken_by_something_else_holds_up_its_model_alone(mesh: Mesh, tmp_path: Path) -> None:
    root = tmp_path / "models"
    plain(root / "a")
    plain(root / "b")
    await import_models(mesh.profile, root, Wanted(), 0, Terminal().console)
    plain(root / "a", operator="Neg")
    plain(root / "b", (1, 2))
    terminal = Terminal()
    with pytest.raises(ImportIncomplete, match=r"1 of 2 models .*: a"):
        await import_models(mesh.profile, root, Wanted(), 0, terminal.console)
    assert "failed a" in terminal.text
    assert await registered(mesh) == {"a": ["1"], "b": ["1", "2"]}


async def test_a_plain_file_and_a_folder_under_another_name_and_tenant(mesh: Mesh, models: Path) -> None:
    file = models / "bare" / "1" / "model.onnx"
    for _ in range(2):  # as it was: no new version
        await import_models(mesh.profile, file, Wanted("mine", tenant="acme", max_batch_size=16), 0, Terminal().console)
    made = await manifest(mesh, "mine")
    assert (made.version, made.tenant, made.max_batch_size, made.engine) == ("1", "acme", 16, "onnx")
    assert [(each.name, each.datatype, list(each.shape)) for each in made.inputs] == [("x", "FP32", [3])]
    await import_models(mesh.profile, file, Wanted("mine", "7", "acme"), 0, Terminal().console)
    await import_models(mesh.profile, models / "versions", Wanted("other", "3"), 0, Terminal().console)
    assert await registered(mesh) == {"mine": ["1", "7"], "other": ["3"]}


async def test_a_dry_run_tells_all_and_needs_no_mesh(models: Path) -> None:
    terminal = Terminal()
    with pytest.raises(ImportIncomplete, match="2 of 9 models cannot be imported"):
        await show_models(models, Wanted(), terminal.console)
    rows = [line.split() for line in terminal.text.splitlines()]
    for words in (
        ["bare", "1", "onnx", "4", "x"],
        ["unbatched", "1", "onnx", "none", "x"],
        ["versions", "10", "onnx", "8", "x"],
    ):
        assert any(row[: len(words)] == words for row in rows), terminal.text
    assert "note bare: inputs and outputs that are not configured were read from the model" in terminal.text


def test_the_command(tmp_path: Path) -> None:
    plain(tmp_path / "models" / "plain")
    write(tmp_path / "models" / "pipeline", 'ensemble_scheduling { step [ { model_name: "plain" } ] }')
    runner, models = CliRunner(), str(tmp_path / "models")
    shown = runner.invoke(app, ["models", "import", models, "--model", "plain", "--dry-run"])
    assert (shown.exit_code, "plain" in shown.output, "pipeline" in shown.output) == (0, True, False)
    shown = runner.invoke(app, ["models", "import", models, "--dry-run"])
    assert (shown.exit_code, "1 of 2 models cannot be imported: pipeline" in shown.output) == (1, True)
    shown = runner.invoke(app, ["models", "import", models, "--data", str(tmp_path)])
    assert (shown.exit_code, "no mesh is known" in shown.output) == (1, True)


def test_what_is_there_to_import(models: Path, tmp_path: Path) -> None:
    assert [each.name for each in read_models(models, Wanted("plain"))] == ["plain"]
    assert [each.versions[0].manifest.version for each in read_models(models / "versions", Wanted(version="10"))] == ["10"]
    (toml,) = read_models(described(tmp_path / "toml"), Wanted())
    assert "penstock models push" in toml.refused
    (nine,) = read_models(models / "versions", Wanted(version="9"))
    assert "it has: 3, 10" in nine.refused
    for path, wanted, error, words in (
        (tmp_path / "nowhere", Wanted(), NothingToImport, "nothing at"),
        (models / "notes", Wanted(), NothingToImport, "holds no models"),
        (models, Wanted("none"), NothingToImport, "holds no model 'none'"),
        (models / "README.md", Wanted(), InvalidArgument, r"no \.onnx file"),
        (models, Wanted(version="x"), InvalidArgument, "whole numbers"),
    ):
        with pytest.raises(error, match=words):
            read_models(path, wanted)


def test_a_configuration_is_compared_with_the_file(tmp_path: Path) -> None:
    """Both sides are shown: which of them is wrong is for a person to say."""
    cases = {
        "name": (PLAIN.replace('"x"', '"picture"'), ("picture in the configuration, and x in the file",)),
        "kind": (PLAIN.replace("TYPE_FP32", "TYPE_INT64", 1), ("FP32", "INT64")),
        "shape": (PLAIN.replace("dims: [ 2 ]", "dims: [ 3 ]", 1), ("[-1, 2]", "[-1, 3]", "batch dimension")),
        "output": (PLAIN.replace('"y"', '"z"'), ("z in the configuration, and y in the file",)),
    }
    for name, (config, _) in cases.items():
        plain(tmp_path / name, config=config)
    refused = {each.name: each.refused for each in read_models(tmp_path, Wanted())}
    for name, (_, words) in cases.items():
        for word in words:
            assert word in refused[name], refused[name]


def test_hostile_files_are_refused_one_by_one(tmp_path: Path) -> None:
    plain(tmp_path / "good")
    plain(tmp_path / "broken")
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(bytes(range(256)) * 100)
    folder = with_external_data(tmp_path / "outside" / "1")
    (folder / "w.bin").rename(tmp_path / "w.bin")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")  # weights that lie elsewhere
    identity(tmp_path / "binary" / "1", "FP32")
    (tmp_path / "binary" / "config.pbtxt").write_bytes(bytes(range(256)))
    found = {each.name: each.refused for each in read_models(tmp_path, Wanted())}
    assert {name for name, refused in found.items() if not refused} == {"good"}
    assert set(found) == {"good", "broken", "outside", "binary"}
