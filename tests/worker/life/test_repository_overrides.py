"""Triton folders of a worker alone, and loads that bring a configuration or files, as Triton's clients make them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from inference import grpc_service_pb2 as pb

from runtime.errors import PenstockError
from runtime.load_overrides import LoadOverride, OverrideTooLarge, override_of
from tests.runtime.triton_repository import PLAIN, plain, repository
from tests.support.waiting import eventually
from tests.worker.life.test_repository import Rig, described, index, load, refused, rig_of, unload
from tests.worker.onnx_models import identity
from worker.life.uploads import Uploads
from worker.types import CopyState

CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


def overriding(name: str, config: dict[str, object] | None, **files: bytes) -> pb.RepositoryModelLoadRequest:
    """`files` by version and name, such as _1_model_onnx."""
    request = pb.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        request.parameters["config"].string_param = json.dumps(config)
    for key, content in files.items():
        _, version, name, suffix = key.split("_")
        request.parameters[f"file:{version}/{name}.{suffix}"].bytes_param = content
    return request


def model_of(folder: Path, operator: str) -> bytes:
    return (identity(folder / operator, "FP32", operator=operator) / "model.onnx").read_bytes()


async def config_of(rig: Rig, name: str) -> pb.ModelConfigResponse:
    config: pb.ModelConfigResponse = await rig.stub.ModelConfig(pb.ModelConfigRequest(name=name))
    return config


async def test_folders_of_a_triton_repository_are_served_with_their_versions(tmp_path: Path) -> None:
    models = repository(tmp_path / "models")
    async with rig_of(repositories=(models,)) as rig:
        failures = await rig.repository.load_all()
        assert sorted(failure.folder.name for failure in failures) == ["pipeline", "wrong"]
        ready = [(name, version) for name, version, state, _ in await index(rig) if state == "READY"]
        assert ready == [
            ("bare", "1"),
            ("folder", "1"),
            ("labelled", "1"),
            ("plain", "1"),
            ("sum", "2"),
            ("unbatched", "1"),
            ("versions", "3"),
            ("versions", "10"),
        ]
        assert await rig.answer("plain") == [2.0, 2.0]
        assert await rig.answer("labelled") == [2.0, 2.0]
        assert len(await rig.answer("folder")) == 512
        for name in ("versions", "labelled"):
            await rig.stub.RepositoryModelUnload(unload(name))
        assert ("versions", "10", "UNAVAILABLE", "unloaded") in await index(rig)
        assert len(rig.holdings) == 5


async def test_a_new_version_comes_and_an_old_one_goes_with_a_load(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", (1,))
    async with rig_of(repositories=(tmp_path,)) as rig:
        await rig.repository.load_all()
        plain(folder, (2,), operator="Neg")
        await rig.stub.RepositoryModelLoad(load("m"))
        assert [row[:3] for row in await index(rig)] == [("m", "2", "READY")]
        assert await rig.answer("m") == [-2.0, -2.0]
        assert [copy.version for copy in rig.holdings] == ["2"]
        (folder / "3").mkdir()
        code, sentence = await refused(rig.stub.RepositoryModelLoad(load("m")))
        assert (code, "model.onnx" in sentence) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        assert await rig.answer("m") == [-2.0, -2.0]


async def test_if_one_version_cannot_be_opened_none_is_exchanged(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", (1, 2), PLAIN + "version_policy { all { } }")
    async with rig_of(folder) as rig:
        await rig.repository.load_all()
        plain(folder, (1,), PLAIN + "version_policy { all { } }", operator="Neg")
        (folder / "2" / "model.onnx").write_bytes(b"no graph")
        await refused(rig.stub.RepositoryModelLoad(load("m")))
        answer = await rig.stub.ModelInfer(_request("m", "1"))
        assert answer.model_version == "1"
        assert [each.state for each in rig.repository.rows()] == [CopyState.READY] * 2
        assert await rig.answer("m") == [2.0, 2.0]


def _request(name: str, version: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=name, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    request.raw_input_contents.append(bytes(8))
    return request


@pytest.mark.parametrize("layout", ["triton", "model.toml"])
async def test_a_configuration_holds_until_a_load_without_one(tmp_path: Path, layout: str) -> None:
    folder = plain(tmp_path / "m") if layout == "triton" else described(tmp_path / "m")
    async with rig_of(folder) as rig:
        await rig.repository.load_all()
        config = (await config_of(rig, "m")).config
        assert config.max_batch_size == 8
        config.max_batch_size = 3
        config.dynamic_batching.max_queue_delay_microseconds = 7
        request = pb.RepositoryModelLoadRequest(model_name="m")
        request.parameters["config"].string_param = json_format.MessageToJson(config)
        await rig.stub.RepositoryModelLoad(request)
        loaded = (await config_of(rig, "m")).config
        assert (loaded.max_batch_size, loaded.dynamic_batching.max_queue_delay_microseconds) == (3, 7)
        assert await rig.answer("m") == [2.0, 2.0]
        assert [row[:3] for row in await index(rig)] == [("m", "1", "READY")]
        await rig.stub.RepositoryModelLoad(load("m"))
        assert (await config_of(rig, "m")).config.max_batch_size == 8


async def test_files_stand_in_for_the_folder_until_a_load_without_them(tmp_path: Path) -> None:
    folder = plain(tmp_path / "repository" / "m", (4,))
    negating = model_of(tmp_path, "Neg")
    async with rig_of(repositories=(folder.parent,)) as rig:
        await rig.repository.load_all()
        await rig.stub.RepositoryModelLoad(overriding("m", CONFIG, _2_model_onnx=negating))
        assert [row[:3] for row in await index(rig)] == [("m", "2", "READY")], "versions of the folder are left aside"
        assert await rig.answer("m") == [-2.0, -2.0]
        assert rig.repository.uploads.size_bytes == len(negating)
        await rig.stub.RepositoryModelLoad(overriding("m", CONFIG, _9_model_onnx=model_of(tmp_path, "Abs")))
        assert await rig.answer("m", -3.0) == [3.0, 3.0]
        await rig.stub.RepositoryModelLoad(load("m"))
        assert [row[:3] for row in await index(rig)] == [("m", "4", "READY")]
        assert (await rig.answer("m"), rig.repository.uploads.size_bytes) == ([2.0, 2.0], 0)


async def test_a_model_of_which_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    async with rig_of(repositories=(tmp_path / "repository",)) as rig:
        await rig.stub.RepositoryModelLoad(overriding("new", CONFIG, _1_model_onnx=model_of(tmp_path, "Neg")))
        assert await rig.answer("new") == [-2.0, -2.0]
        code, sentence = await refused(rig.stub.RepositoryModelLoad(load("new")))
        assert (code, "no folder" in sentence) == (grpc.StatusCode.NOT_FOUND, True)
        assert await rig.answer("new") == [-2.0, -2.0], "a load that fails changes nothing"
        homes = [path for path in rig.repository.uploads.folders if path.exists()]
        await rig.stub.RepositoryModelUnload(unload("new"))
        assert (len(homes), homes[0].exists(), rig.repository.uploads.size_bytes) == (1, False, 0)
        assert (await refused(rig.stub.RepositoryModelLoad(load("new"))))[0] is grpc.StatusCode.NOT_FOUND
        assert await index(rig) == []
        plain(tmp_path / "repository" / "new")
        await rig.stub.RepositoryModelLoad(load("new"))
        assert await rig.answer("new") == [2.0, 2.0]


async def test_nothing_is_left_of_files_that_cannot_be_loaded_or_when_it_ends(tmp_path: Path) -> None:
    async with rig_of(plain(tmp_path / "m")) as rig:
        await rig.repository.load_all()
        for content in (b"no graph", (tmp_path / "m" / "config.pbtxt").read_bytes()):
            code, _ = await refused(rig.stub.RepositoryModelLoad(overriding("m", CONFIG, _1_model_onnx=content)))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
        wrong: dict[str, object] = {**CONFIG, "input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [2]}]}
        code, sentence = await refused(
            rig.stub.RepositoryModelLoad(overriding("m", wrong, _1_model_onnx=model_of(tmp_path, "Neg")))
        )
        assert (code, "'x'" in sentence) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        assert (rig.repository.uploads.size_bytes, rig.repository.uploads.folders) == (0, ())
        assert await rig.answer("m") == [2.0, 2.0]
        await rig.stub.RepositoryModelLoad(overriding("m", CONFIG, _1_model_onnx=model_of(tmp_path, "Neg")))
        (home,) = {folder.parent for folder in rig.repository.uploads.folders}
        assert home.exists()
    assert not home.exists()


async def test_what_an_override_may_not_do(tmp_path: Path) -> None:
    onnx = model_of(tmp_path, "Neg")
    code_folder = tmp_path / "code"
    code_folder.mkdir()
    (code_folder / "model.py").write_text("class Model: ...")
    (code_folder / "model.toml").write_text(
        'name = "code"\nengine = "python"\n[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [1]\n'
    )
    python: dict[str, object] = {**CONFIG, "backend": "python"}
    upstream: dict[str, object] = {**CONFIG, "backend": "upstream"}
    text = pb.ModelRepositoryParameter(string_param="{}")
    file = pb.RepositoryModelLoadRequest(model_name="m", parameters={"file:1/model.onnx": text})
    denied, wrong = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
    async with rig_of(plain(tmp_path / "m"), code_folder) as rig:
        await rig.repository.load_all()
        cases = [
            (overriding("m", python, _1_model_py=b"class Model: ..."), denied, "python"),
            (overriding("m", upstream, _1_upstream_toml=b""), denied, "upstream"),
            (overriding("code", {"max_batch_size": 4}), denied, "python"),
            (overriding("m", None, _1_model_onnx=onnx), wrong, "'config'"),
            (file, wrong, "expected bytes_param"),
            (load("m", config=pb.ModelRepositoryParameter(bytes_param=b"{}")), wrong, "expected string_param"),
            (load("m", colour=text), wrong, "unrecognized load parameter 'colour'"),
            (overriding("m", {"colour": 1}), wrong, "colour"),
            (overriding("m", {"name": "other"}), wrong, "'other'"),
            (overriding("m", {"version_policy": {"specific": {"versions": [7]}}}), wrong, "none of the versions"),
            (overriding("m", CONFIG, _0_model_onnx=onnx), wrong, "file:<version>/<file>"),
            (overriding("no name", CONFIG, _1_model_onnx=onnx), wrong, "may hold letters"),
            (overriding("unknown", CONFIG), grpc.StatusCode.NOT_FOUND, "unknown"),
        ]
        for request, code, words in cases:
            got, sentence = await refused(rig.stub.RepositoryModelLoad(request))
            assert (got, words in sentence) == (code, True), (request.model_name, got, sentence)
        for path in ("file:1/../../x", "file:1//x", "file:/x", "file:1", "file:1/", "file:x/model.onnx", "file:1/a\\b"):
            request = pb.RepositoryModelLoadRequest(model_name="m", parameters={"config": text})
            request.parameters[path].bytes_param = onnx
            assert (await refused(rig.stub.RepositoryModelLoad(request)))[0] is wrong, path
        assert await rig.answer("m") == [2.0, 2.0]


async def test_a_load_of_a_new_model_is_not_forgotten_by_one_that_looks_around(tmp_path: Path) -> None:
    """An entry between its making and its first step was dropped by a scan, and what was loaded then belonged to nobody."""
    (tmp_path / "repository").mkdir()
    onnx = model_of(tmp_path, "Neg")
    async with rig_of(repositories=(tmp_path / "repository",)) as rig:
        names = [f"m{number}" for number in range(8)]
        loads = [rig.stub.RepositoryModelLoad(overriding(name, CONFIG, _1_model_onnx=onnx)) for name in names]
        await asyncio.gather(*loads)
        assert [row[0] for row in await index(rig, ready=True)] == names
        for name in names:
            await rig.stub.RepositoryModelUnload(unload(name))
        assert (rig.repository.uploads.size_bytes, len(rig.holdings), len(rig.table)) == (0, 0, 0)


def test_how_much_may_come() -> None:
    parameters = {"config": pb.ModelRepositoryParameter(string_param="{}")}
    parameters["file:1/a"] = pb.ModelRepositoryParameter(bytes_param=bytes(6))
    parameters["file:1/b"] = pb.ModelRepositoryParameter(bytes_param=bytes(5))
    assert override_of(parameters, 11) == LoadOverride("{}", {(1, "a"): bytes(6), (1, "b"): bytes(5)})
    with pytest.raises(OverrideTooLarge, match="11 bytes; up to 10"):
        override_of(parameters, 10)
    many = {f"file:1/{number}": pb.ModelRepositoryParameter(bytes_param=b"") for number in range(1001)}
    with pytest.raises(OverrideTooLarge, match="1003 files"):
        override_of({**parameters, **many}, 100)
    parameters["file:1/a/b"] = pb.ModelRepositoryParameter(bytes_param=b"")
    with pytest.raises(PenstockError, match="inside of another file"):
        override_of(parameters, 100)
    assert override_of({}, 0) is None


def test_the_room_for_uploads_is_given_back() -> None:
    uploads = Uploads(max_bytes=10)
    first = uploads.keep(LoadOverride("{}", {(1, "d/a"): bytes(6)}))
    assert (first / "1" / "d" / "a").read_bytes() == bytes(6)
    with pytest.raises(OverrideTooLarge, match="5 bytes do not fit beside 6"):
        uploads.keep(LoadOverride("{}", {(1, "a"): bytes(5)}))
    uploads.remove(first)
    second = uploads.keep(LoadOverride("{}", {(1, "a"): bytes(10)}))
    assert (first.exists(), uploads.size_bytes) == (False, 10)
    uploads.remove_all()
    assert (second.parent.exists(), uploads.size_bytes) == (False, 0)


async def test_one_that_is_told_to_end_does_not_wait_for_a_file_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading what is not configured may take minutes; a worker that ends gives it up."""
    started, python = tmp_path / "started", tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 60\n")
    python.chmod(0o755)
    identity(tmp_path / "models" / "bare" / "1", "FP32")
    monkeypatch.setattr(sys, "executable", str(python))
    async with asyncio.timeout(20):
        async with rig_of(repositories=(tmp_path / "models",)) as rig:
            loading = asyncio.ensure_future(rig.repository.load_all())
            await eventually(started.exists)
        with pytest.raises(asyncio.CancelledError):
            await loading
