"""What a Triton user does with load_model(config=…, files=…), with Triton's own client. A program: its descriptors cannot share
a process with ours. Prints a JSON object of scenario → "ok" or what went wrong.

    python override_scenarios.py ADDRESS MODEL_FILE

MODEL_FILE: an ONNX graph y = -x of float [n, 2], where the server's model `plain` gives y = x.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

ADDRESS, NEGATING = sys.argv[1], Path(sys.argv[2]).read_bytes()
CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 5,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


def fails(status: str, says: str, work: Callable[[], object]) -> None:
    try:
        work()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}", error
        assert says in error.message(), error
    else:
        raise AssertionError(f"{status} was expected")


class Scenarios:
    def __init__(self) -> None:
        self.client = triton.InferenceServerClient(ADDRESS)

    def _answer(self, model: str = "plain") -> list[float]:
        tensor = triton.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1.0, 2.0]], np.float32))
        answer: list[float] = self.client.infer(model, [tensor]).as_numpy("y")[0].tolist()
        return answer

    def _versions(self, model: str = "plain") -> list[str]:
        index = self.client.get_model_repository_index().models
        return [each.version for each in index if each.name == model and each.state == "READY"]

    def the_repository_as_it_lies(self) -> None:
        assert "model_repository" in self.client.get_server_metadata().extensions
        assert (self._answer(), self._versions()) == ([1.0, 2.0], ["3"])
        assert self.client.get_model_config("plain").config.max_batch_size == 8

    def a_configuration_alone(self) -> None:
        config = self.client.get_model_config("plain", as_json=True)["config"]
        config["max_batch_size"] = 2
        self.client.load_model("plain", config=json.dumps(config))
        assert self.client.get_model_config("plain").config.max_batch_size == 2
        assert (self._answer(), self._versions()) == ([1.0, 2.0], ["3"])
        self.client.load_model("plain")
        assert self.client.get_model_config("plain").config.max_batch_size == 8

    def files_instead_of_the_repository(self) -> None:
        self.client.load_model("plain", config=json.dumps(CONFIG), files={"file:1/model.onnx": NEGATING})
        assert (self._answer(), self._versions()) == ([-1.0, -2.0], ["1"])
        assert self.client.get_model_config("plain").config.max_batch_size == 5
        self.client.load_model("plain")
        assert (self._answer(), self._versions()) == ([1.0, 2.0], ["3"])

    def a_model_that_the_repository_does_not_have(self) -> None:
        self.client.load_model("brought", config=json.dumps(CONFIG), files={"file:7/model.onnx": NEGATING})
        assert (self._answer("brought"), self._versions("brought")) == ([-1.0, -2.0], ["7"])
        self.client.unload_model("brought")
        assert not self.client.is_model_ready("brought")
        fails("NOT_FOUND", "brought", lambda: self.client.load_model("brought"))

    def what_is_refused_changes_nothing(self) -> None:
        load = self.client.load_model
        fails("INVALID_ARGUMENT", "'config'", lambda: load("plain", files={"file:1/model.onnx": NEGATING}))
        fails("INVALID_ARGUMENT", "colour", lambda: load("plain", config='{"colour": 1}'))
        fails("INVALID_ARGUMENT", "no model configuration", lambda: load("plain", config="{"))
        fails("INVALID_ARGUMENT", "file:<version>", lambda: load("plain", config="{}", files={"file:../x": NEGATING}))
        good, wrong = json.dumps(CONFIG), json.dumps({**CONFIG, "backend": "python"})
        fails("PERMISSION_DENIED", "python", lambda: load("plain", config=wrong, files={"file:1/model.py": b"pass"}))
        fails("FAILED_PRECONDITION", "ONNX", lambda: load("plain", config=good, files={"file:1/model.onnx": b"x"}))
        assert (self._answer(), self._versions()) == ([1.0, 2.0], ["3"])


def main() -> None:
    scenarios, outcomes = Scenarios(), {}
    for name in [name for name in vars(Scenarios) if not name.startswith("_")]:
        try:
            getattr(scenarios, name)()
            outcomes[name] = "ok"
        except BaseException:
            outcomes[name] = traceback.format_exc()
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main()
