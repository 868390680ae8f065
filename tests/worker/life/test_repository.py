"""Folders of a worker alone: loaded, let go of, read anew, as a client of Triton's explicit model control expects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

from runtime.errors import FailedPrecondition, PenstockError
from runtime.serving import Listen, serving
from tests.worker.onnx_models import identity
from worker.config import WorkerSettings
from worker.copies import LoadedModel, open_model
from worker.inference import TableInference
from worker.kserve.servicer import SERVICE, register_inference
from worker.life.lifecycle import Holdings
from worker.life.repository import FolderRepository
from worker.models import ModelTable
from worker.standalone import opened_repository
from worker.types import CopyState, ModelSpec

DESCRIPTION = """
name = "{name}"
engine = "onnx"
task = "tensor"
max_batch_size = 8
[[inputs]]
name = "x"
datatype = "FP32"
shape = [2]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [2]
"""


def described(folder: Path, name: str = "m", operator: str = "Identity") -> Path:
    """A folder with a model: y = x, or another operator of it."""
    identity(folder, "FP32", operator=operator)
    (folder / "model.toml").write_text(DESCRIPTION.format(name=name))
    return folder


@dataclass
class Rig:
    repository: FolderRepository
    table: ModelTable
    holdings: Holdings
    stub: Any = None
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """By model: opening it waits for this."""

    async def open(self, spec: ModelSpec, folder: Path) -> LoadedModel:
        if gate := self.gates.get(spec.model):
            await gate.wait()
        return await open_model(spec, folder)

    def rows(self) -> dict[str, tuple[str, CopyState]]:
        return {row.name: (row.version, row.state) for row in self.repository.rows()}

    def reason(self, name: str) -> str:
        return next(row.reason for row in self.repository.rows() if row.name == name)

    async def answer(self, name: str = "m", value: float = 2.0) -> list[float]:
        request = pb.ModelInferRequest(model_name=name)
        request.inputs.add(name="x", datatype="FP32", shape=(1, 2))
        request.raw_input_contents.append(np.array([value, value], np.float32).tobytes())
        answer = await self.stub.ModelInfer(request)
        return list(np.frombuffer(answer.raw_output_contents[0], np.float32).tolist())


@asynccontextmanager
async def rig_of(*folders: Path, repositories: tuple[Path, ...] = ()) -> AsyncIterator[Rig]:
    table, holdings = ModelTable(), Holdings()
    made: list[Rig] = []

    async def opened(spec: ModelSpec, folder: Path) -> LoadedModel:
        return await made[0].open(spec, folder)

    repository = FolderRepository(folders, repositories, table, holdings, opened, drain_grace_s=5.0)
    rig = Rig(repository, table, holdings)
    made.append(rig)
    register = register_inference(TableInference(table), table, inner=False, repository=repository)
    async with repository.running():
        async with serving([Listen("127.0.0.1", 0)], [register], [SERVICE], drain_grace_s=1.0) as running:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
                rig.stub = rpc.GRPCInferenceServiceStub(channel)
                yield rig
        for loaded in table:
            await table.remove(loaded.spec.model, loaded.spec.version, grace_s=0)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


def load(name: str, **parameters: pb.ModelRepositoryParameter) -> pb.RepositoryModelLoadRequest:
    return pb.RepositoryModelLoadRequest(model_name=name, parameters=parameters)


def unload(name: str, **parameters: pb.ModelRepositoryParameter) -> pb.RepositoryModelUnloadRequest:
    return pb.RepositoryModelUnloadRequest(model_name=name, parameters=parameters)


async def index(rig: Rig, *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    answer = await rig.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready))
    return [(each.name, each.version, each.state, each.reason) for each in answer.models]


async def test_a_model_is_unloaded_and_loaded_again_by_name(tmp_path: Path) -> None:
    async with rig_of(described(tmp_path / "m")) as rig:
        assert await rig.repository.load_all() == []
        assert await index(rig) == [("m", "1", "READY", "")]
        await rig.stub.RepositoryModelUnload(unload("m", unload_dependents=pb.ModelRepositoryParameter(bool_param=True)))
        assert await index(rig) == [("m", "1", "UNAVAILABLE", "unloaded")]
        assert await index(rig, ready=True) == []
        assert len(rig.holdings) == 0
        code, sentence = await refused(rig.answer())
        assert (code, "'m' is not found" in sentence) == (grpc.StatusCode.NOT_FOUND, True)
        await rig.stub.RepositoryModelUnload(unload("m"))
        await rig.stub.RepositoryModelLoad(load("m"))
        assert await rig.answer() == [2.0, 2.0]


async def test_a_folder_that_was_changed_takes_effect_and_what_was_in_flight_is_answered(tmp_path: Path) -> None:
    folder = described(tmp_path / "m")
    async with rig_of(folder) as rig:
        await rig.repository.load_all()
        (before,) = list(rig.holdings)
        digest = before.digest
        described(folder, operator="Neg")
        rig.gates["m"] = asyncio.Event()
        loading = asyncio.ensure_future(rig.stub.RepositoryModelLoad(load("m")))
        assert await rig.answer() == [2.0, 2.0], "until the new one is open the old one answers"
        rig.gates["m"].set()
        await loading
        assert await rig.answer() == [-2.0, -2.0]
        assert await index(rig) == [("m", "1", "READY", "")]
        (copy,) = list(rig.holdings)
        assert copy.digest != digest


async def test_when_the_folder_became_bad_the_old_copy_goes_on_and_says_so(tmp_path: Path) -> None:
    folder = described(tmp_path / "m")
    async with rig_of(folder) as rig:
        await rig.repository.load_all()
        (folder / "model.onnx").write_bytes(b"no graph")
        code, _ = await refused(rig.stub.RepositoryModelLoad(load("m")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert await rig.answer() == [2.0, 2.0]
        assert rig.rows() == {"m": ("1", CopyState.READY)}
        assert "answers as it was" in rig.reason("m")
        described(folder, operator="Neg")
        await rig.repository.load("m")
        assert (await rig.answer(), rig.reason("m")) == ([-2.0, -2.0], "")


async def test_one_bad_folder_of_a_repository_does_not_stop_the_others(tmp_path: Path) -> None:
    models = tmp_path / "models"
    described(models / "a", "a")
    described(models / "b", "b")
    (models / "b" / "model.onnx").write_bytes(b"no graph")
    described(models / "c", "c")
    (models / "c" / "model.toml").write_text("name = ")
    (models / "notes").mkdir()
    described(models / "z", "a")
    async with rig_of(repositories=(models,)) as rig:
        failures = await rig.repository.load_all()
        assert [failure.folder.name for failure in failures] == ["b", "c", "z"]
        rows = await index(rig)
        assert [(name, version, state) for name, version, state, _ in rows] == [
            ("a", "", "UNAVAILABLE"),
            ("a", "1", "READY"),
            ("b", "", "UNAVAILABLE"),
            ("c", "", "UNAVAILABLE"),
        ]
        reasons = [reason for *_, reason in rows]
        for reason, words in zip(reasons, ("is there for", "", "b", "model.toml"), strict=True):
            assert words in reason
        described(models / "b", "b")
        described(models / "new", "d")
        for name in "bd":
            await rig.stub.RepositoryModelLoad(load(name))
            assert await rig.answer(name) == [2.0, 2.0]


async def test_what_is_not_here_and_what_is_not_taken(tmp_path: Path) -> None:
    text = pb.ModelRepositoryParameter(string_param="{}")
    async with rig_of(described(tmp_path / "m")) as rig:
        await rig.repository.load_all()
        calls = rig.stub.RepositoryModelLoad, rig.stub.RepositoryModelUnload
        assert [(await refused(call(request("q"))))[0] for call, request in zip(calls, (load, unload), strict=True)] == [
            grpc.StatusCode.NOT_FOUND
        ] * 2
        assert (await refused(rig.stub.RepositoryModelLoad(load("m", colour=text))))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await refused(rig.stub.RepositoryModelUnload(unload("m", config=text))))[0] is grpc.StatusCode.INVALID_ARGUMENT
        elsewhere = pb.RepositoryModelLoadRequest(repository_name="other", model_name="m")
        assert (await refused(rig.stub.RepositoryModelLoad(elsewhere)))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert await rig.answer() == [2.0, 2.0]


async def test_a_caller_that_leaves_does_not_leave_a_half_loaded_model(tmp_path: Path) -> None:
    async with rig_of(described(tmp_path / "m")) as rig:
        rig.gates["m"] = asyncio.Event()
        loading = rig.stub.RepositoryModelLoad(load("m"))
        while rig.rows().get("m") != ("1", CopyState.LOADING):
            await asyncio.sleep(0.001)
        loading.cancel()
        rig.gates["m"].set()
        async with asyncio.timeout(10):
            while rig.rows()["m"] != ("1", CopyState.READY):
                await asyncio.sleep(0.001)
        assert await rig.answer() == [2.0, 2.0]


async def test_an_end_breaks_loads_off(tmp_path: Path) -> None:
    async with rig_of(described(tmp_path / "m")) as rig:
        rig.gates["m"] = asyncio.Event()
        loading = asyncio.ensure_future(rig.repository.load("m"))
        while rig.rows().get("m") != ("1", CopyState.LOADING):
            await asyncio.sleep(0.001)
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert rig.rows() == {"m": ("", CopyState.FAILED)}
    with pytest.raises(PenstockError, match="is ending"):
        await rig.repository.load("m")


def settings_of(**settings: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"standalone": True, "kserve_port": 0, **settings})


async def test_a_named_folder_has_to_load_and_of_a_repository_one_model(tmp_path: Path) -> None:
    good, bad = described(tmp_path / "good" / "m"), described(tmp_path / "bad" / "n", "n")
    (bad / "model.onnx").write_bytes(b"no graph")
    cases: list[tuple[dict[str, object], bool]] = [
        ({"model_repository": (good.parent, bad.parent)}, True),
        ({"model_repository": (bad.parent,)}, False),
        ({"model_folder": (bad,), "model_repository": (good.parent,)}, False),
        ({"model_repository": (tmp_path / "nowhere",)}, True),
        ({}, True),
    ]
    for settings, starts in cases:
        table = ModelTable()
        opening = opened_repository(settings_of(**settings), table, Holdings(), open_model, asyncio.Event())
        if starts:
            async with opening:
                pass
        else:
            with pytest.raises(PenstockError):
                async with opening:
                    pass
        for loaded in table:
            await table.remove(loaded.spec.model, loaded.spec.version)


async def test_one_that_is_told_to_end_while_it_loads_does_not_load_on(tmp_path: Path) -> None:
    stop = asyncio.Event()

    async def opened(spec: ModelSpec, folder: Path) -> LoadedModel:
        stop.set()
        await asyncio.Event().wait()
        raise FailedPrecondition("never")

    settings = settings_of(model_folder=(described(tmp_path / "m"),))
    async with asyncio.timeout(10), opened_repository(settings, ModelTable(), Holdings(), opened, stop) as repository:
        assert repository is not None
        assert [(row.state, row.reason) for row in repository.rows()] == [(CopyState.FAILED, "the load was broken off")]
