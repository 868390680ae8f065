"""The KServe contract on a real server: what clients of Triton see, code by code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import prometheus_client
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from inference import model_config_pb2
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument
from runtime.serving import Listen, serving
from tests.worker.markov import language_spec, markov
from tests.worker.onnx_models import identity, spec
from worker.copies import open_model
from worker.inference import TableInference
from worker.kserve.servicer import SERVICE, register_inference
from worker.metrics import register_metrics
from worker.models import ModelTable, UnknownModel
from worker.types import BatchingSpec, CallContext, TensorSpec

MODEL = spec(
    outputs=(TensorSpec("y", "FP32", (2,), labels=("no", "yes")),),
    max_batch_size=8,
    batching=BatchingSpec(preferred_batch_sizes=(4,), max_queue_size=70),
    parameters={"intra_op_threads": "1"},
)
FINAL = "triton_final_response"


@dataclass(slots=True)
class Rig:
    table: ModelTable
    inference: TableInference
    stub: Any
    channel: Any


@asynccontextmanager
async def serve(folder: Path, *, inner: bool = False, max_in_flight: int = 100) -> AsyncIterator[Rig]:
    table = ModelTable()
    table.add(await open_model(MODEL, identity(folder / "m", "FP32")))
    table.add(await open_model(language_spec(), markov(folder / "alphabet")))
    inference = TableInference(table, max_in_flight=max_in_flight)
    register = register_inference(inference, table, inner=inner)
    async with serving([Listen("127.0.0.1", 0)], [register], [SERVICE], drain_grace_s=1.0) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            yield Rig(table, inference, rpc.GRPCInferenceServiceStub(channel), channel)
    for loaded in table:
        loaded.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with serve(tmp_path) as made:
        yield made


def infer_request(value: float = 1.5, **fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id="7", **fields)
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(np.array([value, 2], np.float32).tobytes())
    return message


def text_request(text: str, request_id: str = "t", **parameters: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="alphabet", id=request_id)
    message.inputs.add(name="text_input", datatype="BYTES", shape=(1,)).contents.bytes_contents.append(text.encode())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def text_of(response: pb.ModelStreamInferResponse) -> str:
    return response.infer_response.raw_output_contents[0][4:].decode()


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


async def test_infer(rig: Rig) -> None:
    response = await rig.stub.ModelInfer(infer_request())
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
    assert (response.outputs[0].name, response.outputs[0].datatype, list(response.outputs[0].shape)) == ("y", "FP32", [1, 2])
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [1.5, 2.0]


async def test_many_at_once_get_their_own_answers_in_few_executions(rig: Rig) -> None:
    answers = await asyncio.gather(*(rig.stub.ModelInfer(infer_request(float(value))) for value in range(64)))
    assert [np.frombuffer(answer.raw_output_contents[0], np.float32)[0] for answer in answers] == list(range(64))
    statistics = (await rig.stub.ModelStatistics(pb.ModelStatisticsRequest(name="m"))).model_stats[0]
    assert statistics.inference_count == 64
    assert statistics.inference_stats.success.count == statistics.inference_stats.queue.count == 64
    assert statistics.inference_stats.compute_infer.count == 64
    assert statistics.execution_count == sum(batch.compute_infer.count for batch in statistics.batch_stats)
    assert sum(batch.batch_size * batch.compute_infer.count for batch in statistics.batch_stats) == 64
    assert statistics.last_inference > 0


@pytest.mark.parametrize(
    ("message", "code", "sentence"),
    [
        (pb.ModelInferRequest(model_name="x"), "NOT_FOUND", "Request for unknown model: 'x' is not found"),
        (infer_request(model_version="9"), "NOT_FOUND", "'m' version 9 is not found; ready here: 1"),
        (pb.ModelInferRequest(model_name="m"), "INVALID_ARGUMENT", "lacks inputs ['x']"),
        (text_request("a"), "UNIMPLEMENTED", "ModelInfer RPC doesn't support models with decoupled transaction policy"),
    ],
)
async def test_refusals(rig: Rig, message: pb.ModelInferRequest, code: str, sentence: str) -> None:
    failure = await refused(rig.stub.ModelInfer(message))
    assert failure.code().name == code
    assert sentence in (failure.details() or "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=60))
async def test_garbage_in_place_of_a_message_is_refused_and_the_server_lives_on(rig: Rig, payload: bytes) -> None:
    call = rig.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    failure = await refused(call(payload))
    assert failure.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    await rig.stub.ModelInfer(infer_request())


async def test_too_many_in_flight_are_refused_at_once(tmp_path: Path) -> None:
    async with serve(tmp_path, max_in_flight=1) as rig:
        stream = rig.stub.ModelStreamInfer()
        await stream.write(text_request("0", max_tokens=500))
        await stream.read()
        failure = await refused(rig.stub.ModelInfer(infer_request()))
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "all that this worker takes" in (failure.details() or "")
        assert rig.inference.load.in_flight == 1
        stream.cancel()
        async with asyncio.timeout(10):
            while rig.inference.load.in_flight:
                await asyncio.sleep(0.001)
        await rig.stub.ModelInfer(infer_request())


async def test_requests_of_a_stream_count_like_those_that_come_alone(tmp_path: Path) -> None:
    async with serve(tmp_path, max_in_flight=2) as rig:
        stream = rig.stub.ModelStreamInfer()
        for name in ("a", "b", "c"):
            await stream.write(text_request("0", name, max_tokens=500))
        while not (response := await stream.read()).error_message:
            continue
        assert "2 requests are in flight, all that this worker takes" in response.error_message
        assert response.infer_response.id == "c"
        assert (rig.inference.load.in_flight, rig.inference.load.max_in_flight) == (2, 2)
        stream.cancel()


async def test_text_streams_piece_by_piece(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    await stream.write(text_request("uvw"))
    responses = [await stream.read() for _ in range(4)]
    assert [text_of(response) for response in responses] == ["x", "y", "z", ""]
    assert [response.infer_response.parameters[FINAL].bool_param for response in responses] == [False, False, False, True]
    last = responses[-1].infer_response
    assert last.id == "t"
    assert last.parameters["finish_reason"].string_param == "stop"
    assert (last.parameters["prompt_tokens"].int64_param, last.parameters["completion_tokens"].int64_param) == (3, 3)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_the_empty_final_response_is_given_to_who_asks(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    await stream.write(text_request("y", triton_enable_empty_final_response=True))
    first, last = await stream.read(), await stream.read()
    assert text_of(first) == "z"
    assert not last.infer_response.outputs
    assert last.infer_response.parameters[FINAL].bool_param
    stream.cancel()


async def test_the_parameters_of_a_generation(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    await stream.write(text_request("a", max_tokens=20, stop="efg", temperature=0.0, top_p=0.5, top_k=3, seed=4))
    text = ""
    while not (response := await stream.read()).infer_response.parameters[FINAL].bool_param:
        text += text_of(response)
    assert text + text_of(response) == "bcd"
    for bad, sentence in (
        ({"magic": 1}, "parameter 'magic' means nothing to model 'alphabet'; it knows chat_template, frequency_penalty"),
        ({"max_tokens": "many"}, "'max_tokens' is str; expected int"),
        ({"max_tokens": True}, "'max_tokens' is bool; expected int"),
        ({"max_tokens": -1}, "'max_tokens' is -1"),
        ({"max_tokens": 512}, "1 tokens and max_tokens is 512, 513 together"),
    ):
        await stream.write(text_request("a", "bad", **bad))
        response = await stream.read()
        assert sentence in response.error_message
        assert response.infer_response.id == "bad"
    stream.cancel()


async def test_a_stream_survives_its_errors_and_answers_in_order(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    for number in range(40):
        message = infer_request(float(number), model_version="9" if number % 4 == 1 else "")
        message.id = str(number)
        await stream.write(message)
    await stream.done_writing()
    responses = [response async for response in stream]
    assert [response.infer_response.id for response in responses] == [str(number) for number in range(40)]
    for number, response in enumerate(responses):
        if number % 4 == 1:
            assert "version 9 is not found" in response.error_message
        else:
            assert response.infer_response.parameters[FINAL].bool_param
            assert np.frombuffer(response.infer_response.raw_output_contents[0], np.float32)[0] == number


async def test_one_stream_carries_different_models_and_the_slow_one_holds_up_nobody(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    await stream.write(text_request("0", "slow", max_tokens=500))
    await stream.write(infer_request())
    seen: list[pb.ModelStreamInferResponse] = []
    while not seen or seen[-1].infer_response.id != "7":
        seen.append(await stream.read())
    assert len(seen) < 500
    stream.cancel()


async def test_errors_as_statuses_for_who_asks(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
    await stream.write(infer_request(model_version="9"))
    failure = await refused(stream.read())
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    stream = rig.stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
    await stream.write(infer_request())
    assert (await stream.read()).infer_response.id == "7"
    stream.cancel()


async def test_garbage_on_a_stream_is_one_error(rig: Rig) -> None:
    stream = rig.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    await stream.write(b"\xff\xff\xff")
    assert b"no inference.ModelInferRequest" in await stream.read()
    await stream.write(infer_request().SerializeToString())
    assert pb.ModelStreamInferResponse.FromString(await stream.read()).infer_response.id == "7"
    stream.cancel()


async def test_a_cancelled_stream_ends_its_generations(rig: Rig) -> None:
    stream = rig.stub.ModelStreamInfer()
    for _ in range(3):
        await stream.write(text_request("0", max_tokens=500))
    await stream.read()
    stream.cancel()
    async with asyncio.timeout(10):
        while rig.inference.load.in_flight:
            await asyncio.sleep(0.001)


async def test_server_and_model_state(rig: Rig) -> None:
    assert (await rig.stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await rig.stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await rig.stub.ModelReady(pb.ModelReadyRequest(name="m", version="1"))).ready
    assert not (await rig.stub.ModelReady(pb.ModelReadyRequest(name="m", version="2"))).ready
    assert not (await rig.stub.ModelReady(pb.ModelReadyRequest(name="q"))).ready
    metadata = await rig.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "penstock-worker"
    assert metadata.version
    assert {"statistics", "sequence"} <= set(metadata.extensions)
    assert not {"system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(metadata.extensions)


async def test_model_metadata_and_config(rig: Rig) -> None:
    metadata = await rig.stub.ModelMetadata(pb.ModelMetadataRequest(name="m"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["1"], "onnxruntime_onnx")
    assert list(metadata.inputs[0].shape) == [-1, 2]
    config = (await rig.stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
    assert (config.platform, config.backend, config.max_batch_size) == ("onnxruntime_onnx", "onnxruntime", 8)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config_pb2.TYPE_FP32, [2])
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 70
    assert config.parameters["intra_op_threads"].string_value == "1"
    text = (await rig.stub.ModelConfig(pb.ModelConfigRequest(name="alphabet"))).config
    assert text.model_transaction_policy.decoupled
    assert not text.HasField("dynamic_batching")
    for call in (
        rig.stub.ModelMetadata(pb.ModelMetadataRequest(name="q")),
        rig.stub.ModelConfig(pb.ModelConfigRequest(name="q")),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.NOT_FOUND


async def test_repository(rig: Rig) -> None:
    index = await rig.stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(model.name, model.version, model.state) for model in index.models] == [
        ("m", "1", "READY"),
        ("alphabet", "1", "READY"),
    ]
    for call in (
        rig.stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other")),
        rig.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m")),
        rig.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m")),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_shared_memory_trace_and_log(rig: Rig) -> None:
    assert not (await rig.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
    assert not (await rig.stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())).regions
    await rig.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    await rig.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    for call in (
        rig.stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest(name="r")),
        rig.stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="r")),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await rig.stub.TraceSetting(pb.TraceSettingRequest())).settings["trace_level"].value == ["OFF"]
    assert (await rig.stub.LogSettings(pb.LogSettingsRequest())).settings["log_error"].bool_param
    change = pb.LogSettingsRequest()
    change.settings["log_verbose_level"].uint32_param = 1
    assert (await refused(rig.stub.LogSettings(change))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_every_rpc_of_the_contract_answers(rig: Rig) -> None:
    """UNIMPLEMENTED may only be said by us, with a sentence; grpc's own says that a method is missing."""
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        path = f"/{SERVICE}/{method.name}"
        try:
            if method.client_streaming:
                call = rig.channel.stream_stream(path)(iter(()))
                assert await call.read() is grpc.aio.EOF
            else:
                call = rig.channel.unary_unary(path)(b"")
                await call
        except grpc.aio.AioRpcError as failure:
            assert "Method not found" not in (failure.details() or ""), path
            assert failure.code() is not grpc.StatusCode.INTERNAL, path


async def test_an_inner_port_is_for_certified_peers(tmp_path: Path) -> None:
    async with serve(tmp_path, inner=True) as rig:
        for call in (rig.stub.ModelInfer(infer_request()), rig.stub.ServerLive(pb.ServerLiveRequest())):
            assert (await refused(call)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await refused(rig.stub.ModelStreamInfer().read())).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_client_deadline_ends_the_request(rig: Rig) -> None:
    failure = await refused(rig.stub.ModelStreamInfer(timeout=0.05).read())
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_generate(rig: Rig) -> None:
    async def generate(request: worker_pb2.GenerateRequest, model: str = "alphabet") -> list[worker_pb2.GenerateResponse]:
        payload = request.SerializeToString()
        return [
            worker_pb2.GenerateResponse.FromString(answer)
            async for answer in rig.inference.generate(model, "", payload, CallContext())
        ]

    chat = worker_pb2.Chat(messages=[worker_pb2.ChatMessage(role="user", content="wx")])
    answers = await generate(worker_pb2.GenerateRequest(chat=chat))
    assert [answer.text for answer in answers] == ["y", "z", ""]
    assert answers[-1].finish_reason == worker_pb2.FINISH_REASON_STOP
    assert (answers[-1].usage.prompt_tokens, answers[-1].usage.completion_tokens) == (2, 2)
    assert not answers[0].HasField("usage")
    sampling = worker_pb2.Sampling(temperature=0.0, top_p=0.5, top_k=2, seed=1)
    prompted = worker_pb2.GenerateRequest(prompt="a", max_tokens=2, sampling=sampling, resume_token_ids=answers[0].token_ids)
    assert (await generate(prompted))[-1].finish_reason == worker_pb2.FINISH_REASON_LENGTH
    with pytest.raises(InvalidArgument, match="neither a prompt nor a chat"):
        await generate(worker_pb2.GenerateRequest())
    with pytest.raises(InvalidArgument, match="takes tensors and generates no text"):
        await generate(prompted, "m")
    with pytest.raises(UnknownModel, match="unknown model: 'q'"):
        await generate(prompted, "q")
    with pytest.raises(InvalidArgument, match="are no penstock"):
        await anext(rig.inference.generate("alphabet", "", b"\xff", CallContext()))
    assert rig.inference.load.in_flight == 0


async def test_a_stream_through_the_seam_raises_its_failure(rig: Rig) -> None:
    async def stream(payload: bytes) -> list[pb.ModelStreamInferResponse]:
        answers = rig.inference.stream_infer("", "", payload, CallContext())
        return [pb.ModelStreamInferResponse.FromString(answer) async for answer in answers]

    assert [text_of(answer) for answer in await stream(text_request("y").SerializeToString())] == ["z", ""]
    with pytest.raises(UnknownModel, match="not found"):
        await stream(infer_request(model_version="9").SerializeToString())
    with pytest.raises(InvalidArgument):
        await stream(b"\xff")


async def test_the_callers_word_on_model_and_version_goes_first(rig: Rig) -> None:
    payload = infer_request(model_version="9").SerializeToString()
    assert pb.ModelInferResponse.FromString(await rig.inference.infer("m", "1", payload, CallContext())).model_version == "1"
    aliased = pb.ModelInferRequest.FromString(infer_request().SerializeToString())
    aliased.model_name, aliased.model_version = "alias", "77"
    answer = await rig.inference.infer("m", "", aliased.SerializeToString(), CallContext())
    assert pb.ModelInferResponse.FromString(answer).model_name == "m"


async def test_metrics_under_tritons_names(rig: Rig) -> None:
    await asyncio.gather(*(rig.stub.ModelInfer(infer_request()) for _ in range(3)))
    await refused(rig.stub.ModelInfer(pb.ModelInferRequest(model_name="m")))
    assert [answer async for answer in rig.inference.stream_infer("", "", text_request("y").SerializeToString(), CallContext())]
    registry = prometheus_client.CollectorRegistry()
    register_metrics(rig.table, rig.inference, registry)
    page = prometheus_client.generate_latest(registry).decode()
    for line in (
        'nv_inference_request_success{model="m",version="1"} 3.0',
        'nv_inference_count{model="m",version="1"} 3.0',
        'nv_inference_request_failure{model="m",reason="OTHER",version="1"} 1.0',
        'nv_inference_pending_request_count{model="m",version="1"} 0.0',
        'nv_inference_first_response_histogram_ms_count{model="alphabet",version="1"} 1.0',
        'penstock_completion_tokens{model="alphabet",version="1"} 1.0',
        'penstock_batch_rows_bucket{le="+Inf",model="m",version="1"} '
        + str(float(rig.table.get("m").statistics.execution_count)),
        'penstock_batch_rows_sum{model="m",version="1"} 3.0',
        "penstock_worker_in_flight 0.0",
        "penstock_worker_max_in_flight 100.0",
        'penstock_worker_requests_refused{bound="tenant"} 0.0',
    ):
        assert line in page.splitlines(), page
    assert "nv_inference_request_duration_us{" in page
