"""Every call of the HTTP door over real gRPC: its status, its answer, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve
from penstock.gateway.v1 import rest_pb2

from gateway.rest.servicer import SERVICE
from placement.types import CopyState
from runtime.errors import InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from tests.gateway.edge import ADMIN, AUDITOR, CALLER, ONLY_M
from tests.gateway.fakes import copy_of, worker_of
from tests.gateway.rest.door import INFER, Door, door
from tests.support.waiting import eventually

METHODS = rest_pb2.DESCRIPTOR.services_by_name["InferenceRestService"].methods
HEADER = "inference-header-content-length"


@pytest.fixture
async def rest() -> AsyncIterator[Door]:
    async with door() as made:
        yield made


CALLS: list[tuple[str, dict[str, str], Any, int, Any]] = [
    ("GetServerLive", {}, b"", 200, None),
    ("GetServerReady", {}, b"", 200, None),
    ("GetServerMetadata", {}, b"", 200, {"name": "penstock"}),
    ("GetModelReady", {"model": "m"}, b"", 200, None),
    ("GetModelReady", {"model": "m", "version": "9"}, b"", 400, None),
    ("GetModelReady", {"model": "x"}, b"", 400, None),
    (
        "GetModelMetadata",
        {"model": "m"},
        b"",
        200,
        {"name": "m", "versions": ["1"], "platform": "onnxruntime_onnx", "inputs": []},
    ),
    ("GetModelMetadata", {"model": "x"}, b"", 404, {"error": "Request for unknown model: 'x' is not found"}),
    ("GetModelConfig", {"model": "m"}, b"", 200, {"name": "m", "max_batch_size": 8}),
    ("GetModelConfig", {"model": "x"}, b"", 404, None),
    ("GetModelStatistics", {}, b"", 200, None),
    ("GetModelStatistics", {"model": "m", "version": "1"}, b"", 200, None),
    ("GetModelStatistics", {"model": "x"}, b"", 404, None),
    ("Infer", {"model": "m"}, INFER, 200, {"model_name": "m", "model_version": "1"}),
    ("Infer", {"model": "x"}, INFER, 404, {"error": "Request for unknown model: 'x' is not found"}),
    ("Infer", {"model": "m"}, b"{", 400, None),
    ("Generate", {"model": "chat"}, {"text_input": "hi"}, 200, {"model_name": "chat", "text_output": "abc"}),
    (
        "Generate",
        {"model": "chat"},
        {"text": "hi"},
        400,
        {"error": "'text_input' is missing; send the text to go on from or to answer"},
    ),
    ("Generate", {"model": "m"}, {"text_input": "hi"}, 400, None),
    ("Generate", {"model": "x"}, {"text_input": "hi"}, 404, None),
    ("GenerateStream", {"model": "x"}, {"text_input": "hi"}, 404, None),
    ("IndexRepository", {}, b"", 200, None),
    ("IndexRepository", {}, {"ready": 1}, 400, {"error": "'ready' is an integer; expected a boolean"}),
    ("IndexRepository", {"repository": "r"}, b"", 501, None),
    ("LoadModel", {"model": "m"}, b"", 200, None),
    ("LoadModel", {"model": "x"}, b"", 404, None),
    ("LoadModel", {"model": "m"}, {"parameters": {"file:1/a": "!"}}, 400, None),
    ("LoadModel", {"model": "m"}, {"parameters": {"config": 1}}, 400, None),
    ("UnloadModel", {"model": "unloaded"}, {"parameters": {"unload_dependents": False}}, 200, None),
    ("UnloadModel", {"model": "x"}, b"", 404, None),
    ("GetSystemSharedMemory", {}, b"", 200, None),
    ("GetSystemSharedMemory", {"region": "r"}, b"", 404, None),
    ("RegisterSystemSharedMemory", {"region": "r"}, {"key": "/r", "offset": 0, "byte_size": 8}, 501, None),
    ("UnregisterSystemSharedMemory", {"region": "r"}, b"", 200, None),
    ("GetCudaSharedMemory", {}, b"", 200, None),
    ("GetCudaSharedMemory", {"region": "r"}, b"", 404, None),
    ("RegisterCudaSharedMemory", {"region": "r"}, b"", 501, None),
    ("UnregisterCudaSharedMemory", {}, b"", 200, None),
    ("GetTraceSetting", {}, b"", 200, {"trace_level": ["OFF"], "trace_rate": "1000"}),
    ("GetTraceSetting", {"model": "m"}, b"", 200, {"trace_level": ["OFF"]}),
    ("GetTraceSetting", {"model": "x"}, b"", 404, None),
    ("UpdateTraceSetting", {"model": "m"}, {"trace_rate": None, "trace_level": ["OFF"]}, 200, {"trace_rate": "1000"}),
    ("UpdateTraceSetting", {}, {"trace_rate": "7"}, 400, None),
    ("UpdateTraceSetting", {}, {"trace_rate": {}}, 400, None),
    ("GetLogSettings", {}, b"", 200, {"log_verbose_level": 0, "log_info": True, "log_format": "default"}),
    ("UpdateLogSettings", {}, {"log_info": True, "log_verbose_level": 0}, 200, {"log_info": True}),
    ("UpdateLogSettings", {}, {"log_verbose_level": 1}, 400, None),
    ("UpdateLogSettings", {}, {"nothing": 1}, 400, None),
]


async def test_every_call_answers_with_its_status(rest: Door) -> None:
    for method, path, body, status, told in CALLS:
        answer = await rest.ask(method, body, secret=ADMIN, **path)
        assert answer.status == status, (method, path, answer)
        if told is not None:
            assert told.items() <= answer.json().items(), (method, answer.json())
        elif status >= 400 and method != "GetModelReady":
            assert answer.error


def test_the_table_names_every_call() -> None:
    assert {method for method, *_ in CALLS} == {method.name for method in METHODS}


async def test_all_but_health_needs_a_key(rest: Door) -> None:
    for method in METHODS:
        for secret in ("", "sk-wrong"):
            answer = await rest.ask(method.name, b"{", secret=secret, model="m")
            open_ = method.name in ("GetServerLive", "GetServerReady")
            assert answer.status == (200 if open_ else 401), method.name
            assert open_ or "key" in answer.error


async def test_rights_hold_as_over_grpc(rest: Door) -> None:
    assert (await rest.ask("Infer", INFER, secret=ONLY_M, model="n")).status == 403
    assert (await rest.ask("Infer", b"{", secret=AUDITOR, model="m")).status == 403
    assert (await rest.ask("Generate", {"text_input": "x"}, secret=AUDITOR, model="chat")).status == 403
    assert (await rest.ask("GetModelConfig", secret=ONLY_M, model="n")).status == 403
    assert (await rest.ask("LoadModel", secret=CALLER, model="m")).status == 403
    assert [each["name"] for each in (await rest.ask("IndexRepository", secret=ONLY_M)).json()] == ["m"]


async def test_documents_have_tritons_names(rest: Door) -> None:
    index = (await rest.ask("IndexRepository")).json()
    assert {"name": "m", "version": "1", "state": "READY"} in index
    assert {"name": "unloaded", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"} in index
    ready = (await rest.ask("IndexRepository", {"ready": True})).json()
    assert {each["state"] for each in ready} == {"READY"}
    stats = (await rest.ask("GetModelStatistics", model="m")).json()["model_stats"]
    assert (stats[0]["name"], stats[0]["inference_count"], stats[0]["inference_stats"]["success"]) == (
        "m",
        3,
        {"count": 3, "ns": 300},
    )
    assert stats[0]["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 10}
    assert (await rest.ask("GetSystemSharedMemory")).json() == []


async def test_an_inference_both_ways_as_json_and_as_bytes(rest: Door) -> None:
    raw = np.array([1.5, -2], "<f4").tobytes()
    plain = await rest.ask("Infer", {**INFER, "id": "r-7"}, model="m")
    assert plain.json()["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}]
    assert (plain.json()["id"], plain.headers["x-penstock-model-version"]) == ("r-7", "1")
    text = json.dumps(
        {
            "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    answer = await rest.ask("Infer", text + raw, headers=[(HEADER, str(len(text)))], model="m")
    length = int(answer.headers[HEADER])
    assert (answer.content_type, answer.content[length:]) == ("application/octet-stream", raw)
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    packed = await rest.ask(
        "Infer", gzip.compress(json.dumps(INFER).encode()), headers=[("content-encoding", "gzip")], model="m"
    )
    assert packed.json()["outputs"][0]["data"] == [1.5, -2.0]


async def test_a_bad_header_length_is_refused(rest: Door) -> None:
    for value in ("x", "-1", "9" * 30, "4"):
        answer = await rest.ask("Infer", b"{}", headers=[(HEADER, value)], model="m")
        assert (answer.status, HEADER in answer.error) == (400, True)


STATUSES = [
    (InvalidArgument("wrong"), 400),
    (Unimplemented("decoupled"), 501),
    (ResourceExhausted("full", retry_after_s=2.5), 503),
    (Unavailable("gone"), 503),
]


@pytest.mark.parametrize(("raised", "status"), STATUSES)
async def test_what_a_worker_answers_keeps_its_sentence(rest: Door, raised: Any, status: int) -> None:
    rest.gateway.links["a"].script = [raised]
    answer = await rest.ask("Infer", INFER, model="m")
    assert (answer.status, answer.error) == (status, raised.message)
    assert answer.headers.get("retry-after") == (None if raised.retry_after_s is None else "3")


async def test_a_worker_that_answers_nonsense_is_our_fault(rest: Door) -> None:
    rest.gateway.links["a"].script = [lambda _: b"\xff"]
    answer = await rest.ask("Infer", INFER, model="m")
    assert (answer.status, "no ModelInferResponse" in answer.error) == (500, True)


async def test_a_load_brings_files(rest: Door) -> None:
    parameters = {"config": "{}", "file:1/model.onnx": base64.b64encode(b"\x00").decode()}
    answer = await rest.ask("LoadModel", {"parameters": parameters}, secret=ADMIN, model="m")
    assert (answer.status, "publishes nothing" in answer.error) == (501, True)  # this one has nothing to publish with


async def test_readiness_is_told_by_the_status(rest: Door) -> None:
    rest.gateway.tell(worker_of("a", copy_of("m", state=CopyState.LOADING)), wishes=["m"])
    assert (await rest.ask("GetServerReady", secret="")).status == 400
    assert (await rest.ask("GetModelReady", model="m")).status == 400


async def test_one_that_leaves_is_live_and_not_ready(rest: Door) -> None:
    rest.gateway.servicer.questions.readiness.leave()
    assert (await rest.ask("GetServerReady", secret="")).status == 400
    assert (await rest.ask("GetServerLive", secret="")).status == 200
    assert (await rest.ask("Infer", INFER, model="m")).status == 200
    with pytest.raises(grpc.aio.AioRpcError) as leaving:
        await rest.gateway.stub.ServerReady(kserve.ServerReadyRequest())
    assert (leaving.value.code(), leaving.value.details()) == (grpc.StatusCode.UNAVAILABLE, "Server exiting")
    assert (await rest.gateway.stub.ServerLive(kserve.ServerLiveRequest())).live


async def test_restricted_groups_need_their_header() -> None:
    async with door(restricted="inference,model-repository:infer-key=s3cret; health:probe=p") as made:
        refused = await made.ask("Infer", INFER, model="m")
        assert (refused.status, refused.error) == (403, "This API is restricted, expecting header 'infer-key'")
        for value, status in (("s3cret", 200), ("s3cre", 403), ("", 403)):
            answer = await made.ask("Infer", INFER, headers=[("infer-key", value)], model="m")
            assert answer.status == status
        assert (await made.ask("GenerateStream", {"text_input": "x"}, model="chat")).status == 403
        assert (await made.ask("IndexRepository")).status == 403
        assert (await made.ask("GetServerLive", secret="")).status == 403
        assert (await made.ask("GetServerLive", secret="", headers=[("probe", "p")])).status == 200
        assert (await made.ask("GetServerMetadata")).status == 200


async def test_requests_are_counted_by_their_call(rest: Door) -> None:
    await rest.ask("Infer", INFER, model="m")
    await rest.ask("Infer", b"{", model="m")
    await rest.ask("GetServerMetadata")

    def count(**labels: str) -> float | None:
        return rest.gateway.registry.get_sample_value("penstock_gateway_requests_total", labels)

    assert count(method="Infer", model="m", code="OK") == 1
    assert count(method="Infer", model="other", code="INVALID_ARGUMENT") == 1
    assert count(method="GetServerMetadata", model="", code="OK") == 1


async def test_who_goes_away_is_waited_for_no_longer(rest: Door) -> None:
    link = rest.gateway.links["a"]
    link.gate = asyncio.Event()
    request = rest_pb2.RestRequest(model="m")
    request.body.data = json.dumps(INFER).encode()
    asking: Any = rest.gateway.channel.unary_unary(f"/{SERVICE}/Infer")
    call = asking(request.SerializeToString(), metadata=[("authorization", f"Bearer {CALLER}")])
    await eventually(lambda: link.in_flight == 1)
    call.cancel()
    await eventually(lambda: link.in_flight == 0)
    labels = {"method": "Infer", "model": "other", "code": "CANCELLED"}
    await eventually(lambda: rest.gateway.registry.get_sample_value("penstock_gateway_requests_total", labels) == 1)
