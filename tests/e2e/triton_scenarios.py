"""What a Triton user does, with Triton's own Python client, sync and asyncio. A program: its descriptors cannot share a process
with ours. Prints a JSON object of scenario → "ok" or what went wrong.

    python triton_scenarios.py ADDRESS KEY
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

ADDRESS, KEY = sys.argv[1], sys.argv[2]
HEADERS = {"authorization": f"Bearer {KEY}"}
PIXELS = np.random.default_rng(3).random((2, 1, 8, 8), dtype=np.float32)


def image(pixels: Any = PIXELS, module: Any = triton, name: str = "image", datatype: str = "FP32") -> list[Any]:
    tensor = module.InferInput(name, list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def question(text: str, module: Any = triton) -> list[Any]:
    tensor = module.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return [tensor]


def fails(status: str, says: str, work: Callable[[], object]) -> None:
    try:
        work()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}", error
        assert says in error.message(), error
    else:
        raise AssertionError(f"{status} was expected")


class Sync:
    """tritonclient.grpc"""

    def __init__(self) -> None:
        self.client = triton.InferenceServerClient(ADDRESS)

    def health(self) -> None:
        assert self.client.is_server_live()
        assert self.client.is_server_ready()
        assert self.client.is_model_ready("digits", headers=HEADERS)
        assert self.client.is_model_ready("digits", "1", headers=HEADERS)
        assert not self.client.is_model_ready("digits", "99", headers=HEADERS)

    def metadata(self) -> None:
        server = self.client.get_server_metadata(headers=HEADERS)
        assert server.name == "penstock"
        assert "statistics" in server.extensions
        model = self.client.get_model_metadata("digits", headers=HEADERS)
        assert list(model.versions) == ["1"]
        assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == ("image", "FP32", [-1, 1, 8, 8])
        assert list(model.outputs[0].shape) == [-1, 10]

    def config(self) -> None:
        config = self.client.get_model_config("digits", headers=HEADERS).config
        assert (config.name, config.max_batch_size) == ("digits", 64)
        assert list(config.input[0].dims) == [1, 8, 8]
        assert config.HasField("dynamic_batching")
        assert self.client.get_model_config("sums", headers=HEADERS).config.model_transaction_policy.decoupled

    def infer(self) -> None:
        result = self.client.infer("digits", image(), request_id="r-7", headers=HEADERS)
        assert result.as_numpy("logits").shape == (2, 10)
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == ("r-7", "digits", "1")

    def infer_requested_outputs_and_classes(self) -> None:
        outputs = [triton.InferRequestedOutput("logits", class_count=3)]
        classes = self.client.infer("digits", image(), outputs=outputs, headers=HEADERS).as_numpy("logits")
        assert classes.shape == (2, 3)
        score, index, label = classes[0][0].decode().split(":")
        assert float(score)
        assert index == label

    def infer_priority_and_timeout(self) -> None:
        assert (
            self.client.infer("digits", image(), priority=1, timeout=5_000_000, headers=HEADERS).as_numpy("logits") is not None
        )

    def infer_own_parameters(self) -> None:
        own = {"own": 1, "share": 0.5, "word": "w", "flag": True}
        assert self.client.infer("digits", image(), parameters=own, headers=HEADERS).as_numpy("logits") is not None

    def async_infer(self) -> None:
        done: queue.Queue[tuple[Any, Any]] = queue.Queue()
        for _ in range(20):
            self.client.async_infer("digits", image(), lambda result, error: done.put((result, error)), headers=HEADERS)
        for _ in range(20):
            result, error = done.get(timeout=20)
            assert error is None, error
            assert result.as_numpy("logits").shape == (2, 10)

    def bad_requests(self) -> None:
        infer = self.client.infer
        wrong_shape = np.zeros((1, 1, 9, 9), np.float32)
        fails("INVALID_ARGUMENT", "8", lambda: infer("digits", image(wrong_shape), headers=HEADERS))
        wrong_type = PIXELS.astype(np.float64)
        fails("INVALID_ARGUMENT", "FP32", lambda: infer("digits", image(wrong_type, datatype="FP64"), headers=HEADERS))
        fails("INVALID_ARGUMENT", "image", lambda: infer("digits", image(name="picture"), headers=HEADERS))
        too_many = np.zeros((65, 1, 8, 8), np.float32)
        fails("INVALID_ARGUMENT", "64", lambda: infer("digits", image(too_many), headers=HEADERS))
        fails("NOT_FOUND", "unknown model", lambda: infer("nothing", image(), headers=HEADERS))
        fails("UNAUTHENTICATED", "key", lambda: infer("digits", image()))
        fails("UNAUTHENTICATED", "key", lambda: infer("digits", image(), headers={"authorization": "Bearer sk-pn-no"}))
        fails("UNIMPLEMENTED", "decoupled", lambda: infer("sums", question("1+1"), headers=HEADERS))
        huge = np.zeros((1, 1, 8, 3 << 20), np.float32)
        fails("RESOURCE_EXHAUSTED", "larger than max", lambda: infer("digits", image(huge), headers=HEADERS))
        self.infer()

    def deadline(self) -> None:
        fails("DEADLINE_EXCEEDED", "", lambda: self.client.infer("digits", image(), client_timeout=1e-6, headers=HEADERS))

    def stream(self) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(lambda result, error: answers.put((result, error)), headers=HEADERS)
        self.client.async_stream_infer("digits", image(), request_id="d")
        self.client.async_stream_infer("digits", image(name="wrong"), request_id="bad")
        result, error = answers.get(timeout=20)
        assert error is None, error
        assert result.get_response().id == "d"
        result, error = answers.get(timeout=20)
        assert "wrong" in str(error)
        self.client.async_stream_infer("sums", question("12+34"), request_id="s")
        text, final = "", False
        while not final:
            result, error = answers.get(timeout=20)
            assert error is None, error
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                text += result.as_numpy("text_output")[0].decode()
        assert text == "12 + 34 = 46", text
        self.client.stop_stream()

    def stream_with_real_statuses(self) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        headers = {**HEADERS, "triton_grpc_error": "true"}
        client = triton.InferenceServerClient(ADDRESS)
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("digits", image(np.zeros((1, 1, 9, 9), np.float32)))
        _, error = answers.get(timeout=20)
        assert error.status() == "StatusCode.INVALID_ARGUMENT", error
        client.stop_stream()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("nothing", image())
        _, error = answers.get(timeout=20)
        assert error.status() == "StatusCode.NOT_FOUND", error
        client.stop_stream()
        client.close()

    def statistics(self) -> None:
        before = self.client.get_inference_statistics("digits", headers=HEADERS).model_stats
        for _ in range(5):
            self.infer()
        after = self.client.get_inference_statistics("digits", headers=HEADERS).model_stats
        assert sum(s.inference_count for s in after) - sum(s.inference_count for s in before) == 10
        assert sum(s.inference_stats.success.count for s in after) - sum(s.inference_stats.success.count for s in before) == 5

    def repository(self) -> None:
        index = self.client.get_model_repository_index(headers=HEADERS).models
        assert {(m.name, m.version, m.state) for m in index} >= {("digits", "1", "READY"), ("sums", "1", "READY")}
        self.client.unload_model("sums", headers=HEADERS)
        assert not self.client.is_model_ready("sums", headers=HEADERS)
        fails("NOT_FOUND", "sums", lambda: self.client.get_model_metadata("sums", headers=HEADERS))
        self.client.load_model("sums", headers=HEADERS)
        assert self.client.is_model_ready("sums", headers=HEADERS)
        fails("NOT_FOUND", "nothing", lambda: self.client.load_model("nothing", headers=HEADERS))

    def not_applicable(self) -> None:
        assert not self.client.get_system_shared_memory_status(headers=HEADERS).regions
        assert not self.client.get_cuda_shared_memory_status(headers=HEADERS).regions
        attempts: list[Callable[[], Any]] = [
            lambda: self.client.register_system_shared_memory("r", "/r", 8, headers=HEADERS),
            lambda: self.client.register_cuda_shared_memory("r", b"", 0, 8, headers=HEADERS),
        ]
        for work in attempts:
            try:
                work()
            except InferenceServerException as error:
                assert error.status() in ("StatusCode.UNIMPLEMENTED", "StatusCode.INVALID_ARGUMENT"), error
            else:
                raise AssertionError("shared memory was registered")
        held = self.client.get_trace_settings(headers=HEADERS)
        assert self.client.get_trace_settings("digits", headers=HEADERS) == held
        assert self.client.update_trace_settings("digits", {"trace_rate": None}, headers=HEADERS) == held
        change = {"trace_rate": "7"}
        fails("INVALID_ARGUMENT", "trace_rate", lambda: self.client.update_trace_settings(settings=change, headers=HEADERS))
        self.client.get_log_settings(headers=HEADERS)


class Aio:
    """tritonclient.grpc.aio"""

    def __init__(self) -> None:
        self.client = triton_aio.InferenceServerClient(ADDRESS)

    async def health(self) -> None:
        assert await self.client.is_server_live()
        assert await self.client.is_server_ready()
        assert await self.client.is_model_ready("sums", headers=HEADERS)

    async def infer(self) -> None:
        results = await asyncio.gather(
            *(self.client.infer("digits", image(), request_id=str(i), headers=HEADERS) for i in range(32))
        )
        assert [result.get_response().id for result in results] == [str(i) for i in range(32)]

    async def metadata_config_statistics(self) -> None:
        assert (await self.client.get_model_metadata("sums", headers=HEADERS)).inputs[0].name == "text_input"
        assert (await self.client.get_model_config("sums", headers=HEADERS)).config.name == "sums"
        assert (await self.client.get_inference_statistics(headers=HEADERS)).model_stats

    async def stream(self) -> None:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(3):
                yield {
                    "model_name": "sums",
                    "inputs": question(f"{number + 10}+30", triton_aio),
                    "request_id": str(number),
                    "enable_empty_final_response": True,
                }

        texts, finals = {"0": "", "1": "", "2": ""}, 0
        async for result, error in self.client.stream_infer(requests(), headers=HEADERS):
            assert error is None, error
            response = result.get_response()
            if response.outputs:
                texts[response.id] += result.as_numpy("text_output")[0].decode()
            finals += response.parameters["triton_final_response"].bool_param
            if finals == 3:
                break
        assert texts == {"0": "10 + 30 = 40", "1": "11 + 30 = 41", "2": "12 + 30 = 42"}, texts

    async def errors(self) -> None:
        try:
            await self.client.infer("nothing", image(), headers=HEADERS)
        except InferenceServerException as error:
            assert error.status() == "StatusCode.NOT_FOUND", error
        else:
            raise AssertionError("an unknown model answered")


SYNC = [name for name in vars(Sync) if not name.startswith("_")]
AIO = [name for name in vars(Aio) if not name.startswith("_")]


def sync_outcomes() -> dict[str, str]:
    scenarios = Sync()
    outcomes = {f"sync.{name}": _outcome(getattr(scenarios, name)) for name in SYNC}
    scenarios.client.close()
    return outcomes


async def aio_outcomes() -> dict[str, str]:
    scenarios, outcomes = Aio(), {}
    for name in AIO:
        try:
            await asyncio.wait_for(getattr(scenarios, name)(), 30)
            outcomes[f"aio.{name}"] = "ok"
        except Exception:
            outcomes[f"aio.{name}"] = traceback.format_exc()
    await scenarios.client.close()
    return outcomes


def _outcome(scenario: Callable[[], None]) -> str:
    try:
        scenario()
    except Exception:
        return traceback.format_exc()
    return "ok"


if __name__ == "__main__":
    print(json.dumps({**sync_outcomes(), **asyncio.run(aio_outcomes())}))  # noqa: T201
