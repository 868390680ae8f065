"""What a Triton user does over HTTP, with Triton's own Python client, through Envoy. A program, as `triton_scenarios.py` is:
its client brings an event loop of its own. Prints a JSON object of scenario → "ok" or what went wrong.

    python triton_http_scenarios.py HOST:PORT KEY
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ADDRESS, KEY = sys.argv[1], sys.argv[2]
PIXELS = np.random.default_rng(3).random((2, 1, 8, 8), dtype=np.float32)


def headers() -> dict[str, str]:
    """Made anew for each call: the client writes the length of one request's JSON into what it is given."""
    return {"authorization": f"Bearer {KEY}"}


def image(pixels: Any = PIXELS, name: str = "image", datatype: str = "FP32", *, binary: bool = True) -> list[Any]:
    tensor = triton.InferInput(name, list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return [tensor]


def fails(status: str, says: str, work: Callable[[], object]) -> None:
    try:
        work()
    except InferenceServerException as error:
        assert error.status() == status, error
        assert says in error.message(), error
    else:
        raise AssertionError(f"{status} was expected")


class Http:
    """tritonclient.http"""

    def __init__(self) -> None:
        self.client = triton.InferenceServerClient(ADDRESS, concurrency=4)

    def health(self) -> None:
        assert self.client.is_server_live()
        assert self.client.is_server_ready()
        assert self.client.is_model_ready("digits", headers=headers())
        assert self.client.is_model_ready("digits", "1", headers=headers())
        assert not self.client.is_model_ready("digits", "99", headers=headers())
        assert not self.client.is_model_ready("nothing", headers=headers())

    def metadata(self) -> None:
        server = self.client.get_server_metadata(headers=headers())
        assert server["name"] == "penstock"
        assert "binary_tensor_data" in server["extensions"]
        model = self.client.get_model_metadata("digits", headers=headers())
        assert model["versions"] == ["1"]
        assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        assert model["outputs"][0]["shape"] == [-1, 10]

    def config(self) -> None:
        config = self.client.get_model_config("digits", headers=headers())
        assert (config["name"], config["max_batch_size"]) == ("digits", 64)
        assert config["input"][0]["dims"] == [1, 8, 8]
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert "dynamic_batching" in config
        decoupled = self.client.get_model_config("sums", "1", headers=headers())
        assert decoupled["model_transaction_policy"] == {"decoupled": True}

    def infer_in_every_form(self) -> None:
        expected = self.client.infer("digits", image(), headers=headers()).as_numpy("logits")
        assert expected.shape == (2, 10)
        for binary_in in (True, False):
            for binary_out in (True, False):
                outputs = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
                answer = self.client.infer(
                    "digits", image(binary=binary_in), outputs=outputs, request_id="r-7", headers=headers()
                )
                told = answer.get_response()
                assert (told["id"], told["model_name"], told["model_version"]) == ("r-7", "digits", "1")
                assert ("data" in told["outputs"][0]) is not binary_out
                np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-5)

    def infer_compressed(self) -> None:
        for name in ("gzip", "deflate"):
            packed = self.client.infer("digits", image(), headers=headers(), request_compression_algorithm=name)
            assert packed.as_numpy("logits").shape == (2, 10)
        answer = self.client.infer("digits", image(), headers=headers(), response_compression_algorithm="gzip")
        assert answer.as_numpy("logits").shape == (2, 10)

    def infer_requested_outputs_and_classes(self) -> None:
        for binary in (True, False):
            outputs = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
            classes = self.client.infer("digits", image(), outputs=outputs, headers=headers()).as_numpy("logits")
            assert classes.shape == (2, 3)
            first = classes[0][0]
            score, index, label = (first.decode() if isinstance(first, bytes) else str(first)).split(":")
            assert float(score)
            assert index == label

    def infer_with_parameters(self) -> None:
        answer = self.client.infer("digits", image(), priority=1, timeout=5_000_000, parameters={"own": 1}, headers=headers())
        assert answer.as_numpy("logits") is not None

    def async_infer(self) -> None:
        asked = [self.client.async_infer("digits", image(), request_id=str(each), headers=headers()) for each in range(20)]
        assert [each.get_result().get_response()["id"] for each in asked] == [str(each) for each in range(20)]

    def bad_requests(self) -> None:
        infer = self.client.infer
        fails("400", "8", lambda: infer("digits", image(np.zeros((1, 1, 9, 9), np.float32)), headers=headers()))
        fails("400", "FP32", lambda: infer("digits", image(PIXELS.astype(np.float64), datatype="FP64"), headers=headers()))
        fails("400", "image", lambda: infer("digits", image(name="picture"), headers=headers()))
        fails("400", "64", lambda: infer("digits", image(np.zeros((65, 1, 8, 8), np.float32)), headers=headers()))
        fails("404", "unknown model", lambda: infer("nothing", image(), headers=headers()))
        fails("401", "key", lambda: infer("digits", image()))
        fails("401", "key", lambda: infer("digits", image(), headers={"authorization": "Bearer sk-pn-no"}))
        question = triton.InferInput("text_input", [1], "BYTES")
        question.set_data_from_numpy(np.array([b"1+1"], dtype=object))
        fails("501", "decoupled", lambda: infer("sums", [question], headers=headers()))
        huge = np.zeros((1, 1, 8, 3 << 20), np.float32)
        fails("413", "larger than", lambda: infer("digits", image(huge), headers=headers()))
        self.infer_in_every_form()

    def statistics(self) -> None:
        before = self.client.get_inference_statistics("digits", headers=headers())["model_stats"]
        for _ in range(5):
            self.client.infer("digits", image(), headers=headers())
        after = self.client.get_inference_statistics("digits", "1", headers=headers())["model_stats"]
        assert sum(each["inference_count"] for each in after) - sum(each["inference_count"] for each in before) == 10
        assert self.client.get_inference_statistics(headers=headers())["model_stats"]

    def repository(self) -> None:
        index = self.client.get_model_repository_index(headers=headers())
        assert {("digits", "1", "READY"), ("sums", "1", "READY")} <= {(m["name"], m["version"], m["state"]) for m in index}
        self.client.unload_model("sums", headers=headers())
        assert not self.client.is_model_ready("sums", headers=headers())
        fails("404", "sums", lambda: self.client.get_model_metadata("sums", headers=headers()))
        self.client.load_model("sums", headers=headers())
        assert self.client.is_model_ready("sums", headers=headers())
        fails("404", "nothing", lambda: self.client.load_model("nothing", headers=headers()))

    def shared_memory(self) -> None:
        assert self.client.get_system_shared_memory_status(headers=headers()) == []
        assert self.client.get_cuda_shared_memory_status(headers=headers()) == []
        fails("501", "shared", lambda: self.client.register_system_shared_memory("r", "/r", 8, headers=headers()))
        fails("501", "shared", lambda: self.client.register_cuda_shared_memory("r", b"", 0, 8, headers=headers()))
        self.client.unregister_system_shared_memory(headers=headers())
        self.client.unregister_cuda_shared_memory("r", headers=headers())

    def settings(self) -> None:
        held = self.client.get_trace_settings(headers=headers())
        assert held["trace_level"] == ["OFF"]
        assert self.client.get_trace_settings("digits", headers=headers()) == held
        assert self.client.update_trace_settings("digits", {"trace_rate": None}, headers=headers()) == held
        fails("400", "trace_rate", lambda: self.client.update_trace_settings(settings={"trace_rate": "7"}, headers=headers()))
        logging = self.client.get_log_settings(headers=headers())
        assert self.client.update_log_settings(logging, headers=headers()) == logging
        fails("400", "log_info", lambda: self.client.update_log_settings({"log_info": False}, headers=headers()))


def outcomes() -> dict[str, str]:
    scenarios, found = Http(), {}
    for name in [each for each in vars(Http) if not each.startswith("_")]:
        try:
            getattr(scenarios, name)()
            found[f"http.{name}"] = "ok"
        except Exception:
            found[f"http.{name}"] = traceback.format_exc()
    scenarios.client.close()
    return found


if __name__ == "__main__":
    print(json.dumps(outcomes()))  # noqa: T201
