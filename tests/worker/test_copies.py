"""Opening, finding and removing copies, with real engines on their own threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
from inference import grpc_service_pb2 as pb

from runtime.errors import AlreadyExists
from runtime.ids import ModelName, ModelVersion
from tests.worker.markov import language_spec, markov
from tests.worker.onnx_models import identity, lookup, spec
from worker.batching.batcher import ModelLeaving
from worker.batching.tensor_model import TensorModel
from worker.copies import open_model
from worker.engine import EngineUnavailable, ModelRefused, TextRequest
from worker.generation.text_model import TextModel
from worker.models import ModelTable, UnknownModel
from worker.types import CallContext, TensorSpec

CALL = CallContext()


def request(raw: bytes = bytes(8)) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    return message


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Threads of tests before these, which ran in the same process, are not of these."""
    OTHERS.clear()
    OTHERS.update(threading.enumerate())
    yield
    OTHERS.clear()


OTHERS: WeakSet[threading.Thread] = WeakSet()


def engine_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("engine-") and each not in OTHERS]


async def no_engine_threads() -> None:
    async with asyncio.timeout(10):
        while engine_threads():
            await asyncio.sleep(0.001)


async def test_the_newest_ready_version_answers(tmp_path: Path) -> None:
    folder = identity(tmp_path, "FP32")
    table = ModelTable()
    for version in ("2", "10", "9"):
        table.add(await open_model(spec(version=version), folder))
    assert table.get("m").spec.version == "10"
    assert table.get("m", "2").spec.version == "2"
    assert table.versions("m") == ["2", "9", "10"]
    with pytest.raises(AlreadyExists):
        table.add(table.get("m"))
    await table.remove(ModelName("m"), ModelVersion("10"))
    assert table.get("m").spec.version == "9"
    with pytest.raises(UnknownModel, match="Request for unknown model: 'm' version 10 is not found; ready here: 2, 9"):
        table.get("m", "10")
    with pytest.raises(UnknownModel, match="Request for unknown model: 'q' is not found"):
        table.get("q")
    for version in ("2", "9"):
        await table.remove(ModelName("m"), ModelVersion(version))
    assert len(table) == 0
    await no_engine_threads()


async def test_removing_lets_requests_in_flight_end(tmp_path: Path) -> None:
    table = ModelTable()
    loaded = await open_model(spec(), identity(tmp_path, "FP32"))
    assert isinstance(loaded, TensorModel)
    table.add(loaded)
    inside = [asyncio.ensure_future(loaded.infer(request(), CALL)) for _ in range(20)]
    await asyncio.sleep(0)
    removing = asyncio.ensure_future(table.remove(ModelName("m"), ModelVersion("1")))
    await asyncio.sleep(0)
    assert [copy.spec.model for copy in table.leaving] == ["m"]
    with pytest.raises(ModelLeaving):
        await loaded.infer(request(), CALL)
    await removing
    assert [len(answer.outputs) for answer in await asyncio.gather(*inside)] == [1] * 20
    assert not table.leaving


async def test_a_grace_cuts_a_drain_short(tmp_path: Path) -> None:
    table = ModelTable()
    table.add(loaded := await open_model(language_spec(parameters={"max_generations": "1"}), markov(tmp_path)))
    assert isinstance(loaded, TextModel)
    pieces = loaded.generate(TextRequest("0", max_tokens=500), CALL)
    await anext(pieces)
    await table.remove(ModelName("alphabet"), ModelVersion("1"), grace_s=0.01)
    with pytest.raises(ModelLeaving):
        async for _ in pieces:
            pass
    await no_engine_threads()


async def test_a_refused_model_leaves_no_thread_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        await open_model(spec(), tmp_path)
    with pytest.raises(EngineUnavailable):
        await open_model(spec(engine="abacus"), tmp_path)
    with pytest.raises(ModelRefused, match="'max_generations'"):
        await open_model(language_spec(parameters={"max_generations": "many"}), markov(tmp_path))
    await no_engine_threads()


async def test_a_warm_up_that_zeros_cannot_do_is_no_reason_to_refuse(tmp_path: Path) -> None:
    described = spec(inputs=(TensorSpec("x", "INT64", (1,)),), outputs=(TensorSpec("y", "FP32", (1,)),))
    loaded = await open_model(described, lookup(tmp_path))
    assert loaded.statistics.execution_count == 0
    loaded.close()


async def test_opening_and_closing_many_times_leaves_nothing(tmp_path: Path) -> None:
    folder = identity(tmp_path, "FP32")
    for _ in range(30):
        loaded = await open_model(spec(), folder)
        loaded.close()
    await no_engine_threads()
