"""What a Triton user does with system shared memory, with Triton's own client and its shared-memory utilities. A program: its
descriptors cannot share a process with ours. Prints a JSON object of scenario → "ok" or what went wrong.

    python shared_memory_scenarios.py ADDRESS PREFIX
"""

from __future__ import annotations

import json
import os
import queue
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

ADDRESS, PREFIX = sys.argv[1], sys.argv[2]
PIXELS = np.random.default_rng(3).random((2, 1, 8, 8), dtype=np.float32)
LOGITS_BYTES = 2 * 10 * 4


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
        self.expected = self.client.infer("digits", self._sent()).as_numpy("logits")

    def the_server_says_that_it_does(self) -> None:
        extensions = self.client.get_server_metadata().extensions
        assert "system_shared_memory" in extensions
        assert "cuda_shared_memory" not in extensions

    def register_status_unregister(self) -> None:
        with self._registered("r", PIXELS.nbytes, 16):
            for regions in (
                self.client.get_system_shared_memory_status().regions,
                self.client.get_system_shared_memory_status("r").regions,
            ):
                region = regions["r"]
                assert (region.name, region.key, region.offset) == ("r", f"/{PREFIX}r", 16), region
                assert region.byte_size == PIXELS.nbytes
            fails("ALREADY_EXISTS", "already in manager", lambda: self._register("r", PIXELS.nbytes))
        assert not self.client.get_system_shared_memory_status().regions
        fails("NOT_FOUND", "Unable to find", lambda: self.client.get_system_shared_memory_status("r"))
        self.client.unregister_system_shared_memory("r")
        with self._registered("a", 8), self._registered("b", 8):
            self.client.unregister_system_shared_memory()
            assert not self.client.get_system_shared_memory_status().regions

    def what_is_not_opened(self) -> None:
        register = self.client.register_system_shared_memory
        fails("NOT_FOUND", "Unable to open shared memory region", lambda: register("r", f"/{PREFIX}absent", 8))
        fails("PERMISSION_DENIED", "not for this worker", lambda: register("r", "/other", 8))
        fails("INVALID_ARGUMENT", "expected '/name'", lambda: register("r", f"/{PREFIX}/../x", 8))
        fails("UNIMPLEMENTED", "CUDA", lambda: self.client.register_cuda_shared_memory("r", b"", 0, 8))

    def inputs_and_outputs(self) -> None:
        with self._registered("in", PIXELS.nbytes + 8) as into, self._registered("out", LOGITS_BYTES + 8) as out:
            shm.set_shared_memory_region(into, [PIXELS], offset=8)
            result = self.client.infer("digits", self._shared(8), outputs=self._wanted(4))
            output = result.get_output("logits")
            assert list(output.shape) == [2, 10]
            assert output.parameters["shared_memory_region"].string_param == "out"
            assert output.parameters["shared_memory_byte_size"].int64_param == LOGITS_BYTES
            assert output.parameters["shared_memory_offset"].int64_param == 4
            assert list(result.get_response().raw_output_contents) == [b""]
            logits = shm.get_contents_as_numpy(out, np.float32, [2, 10], 4)
            assert np.allclose(logits, self.expected, atol=1e-5)
            del logits

    def a_shared_input_and_a_sent_output_and_the_other_way_round(self) -> None:
        with self._registered("in", PIXELS.nbytes) as into, self._registered("out", LOGITS_BYTES) as out:
            shm.set_shared_memory_region(into, [PIXELS])
            logits = self.client.infer("digits", self._shared()).as_numpy("logits")
            assert np.allclose(logits, self.expected, atol=1e-5)
            self.client.infer("digits", self._sent(), outputs=self._wanted())
            assert np.allclose(shm.get_contents_as_numpy(out, np.float32, [2, 10]), self.expected, atol=1e-5)

    def on_a_stream(self) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with self._registered("in", PIXELS.nbytes) as into, self._registered("out", LOGITS_BYTES) as out:
            shm.set_shared_memory_region(into, [PIXELS])
            self.client.start_stream(lambda result, error: answers.put((result, error)))
            for number in range(20):
                self.client.async_stream_infer("digits", self._shared(), outputs=self._wanted(), request_id=str(number))
            for number in range(20):
                result, error = answers.get(timeout=20)
                assert error is None, error
                assert result.get_response().id == str(number)
            self.client.stop_stream()
            assert np.allclose(shm.get_contents_as_numpy(out, np.float32, [2, 10]), self.expected, atol=1e-5)

    def what_does_not_fit(self) -> None:
        with self._registered("in", PIXELS.nbytes) as into, self._registered("out", 8):
            shm.set_shared_memory_region(into, [PIXELS])
            few = triton.InferRequestedOutput("logits")
            few.set_shared_memory("out", 8)
            infer = self.client.infer
            fails("INVALID_ARGUMENT", "takes 80 bytes", lambda: infer("digits", self._shared(), outputs=[few]))
            fails("INVALID_ARGUMENT", "which has", lambda: infer("digits", self._shared(8)))
            fails("INVALID_ARGUMENT", "takes 512", lambda: infer("digits", self._shared(0, PIXELS.nbytes - 4)))
        fails("NOT_FOUND", "Unable to find shared memory region: 'in'", lambda: self.client.infer("digits", self._shared()))

    def memory_that_is_taken_away(self) -> None:
        """The worker lives on, and says so."""
        with self._registered("in", PIXELS.nbytes):
            os.truncate(Path("/dev/shm") / f"{PREFIX}in", 10)
            fails("INVALID_ARGUMENT", "smaller than", lambda: self.client.infer("digits", self._shared()))
        assert np.allclose(self.client.infer("digits", self._sent()).as_numpy("logits"), self.expected, atol=1e-5)

    def _sent(self) -> list[Any]:
        tensor = triton.InferInput("image", list(PIXELS.shape), "FP32")
        tensor.set_data_from_numpy(PIXELS)
        return [tensor]

    def _shared(self, offset: int = 0, byte_size: int = PIXELS.nbytes) -> list[Any]:
        tensor = triton.InferInput("image", list(PIXELS.shape), "FP32")
        tensor.set_shared_memory("in", byte_size, offset)
        return [tensor]

    def _wanted(self, offset: int = 0) -> list[Any]:
        output = triton.InferRequestedOutput("logits")
        output.set_shared_memory("out", LOGITS_BYTES, offset)
        return [output]

    def _register(self, name: str, byte_size: int, offset: int = 0) -> None:
        self.client.register_system_shared_memory(name, f"/{PREFIX}{name}", byte_size, offset=offset)

    @contextmanager
    def _registered(self, name: str, byte_size: int, offset: int = 0) -> Iterator[Any]:
        handle = shm.create_shared_memory_region(name, f"/{PREFIX}{name}", byte_size + offset)
        try:
            self._register(name, byte_size, offset)
            yield handle
        finally:
            self.client.unregister_system_shared_memory(name)
            shm.destroy_shared_memory_region(handle)


def outcomes() -> dict[str, str]:
    scenarios, found = Scenarios(), {}
    for name in [name for name in vars(Scenarios) if not name.startswith("_")]:
        try:
            getattr(scenarios, name)()
            found[name] = "ok"
        except Exception:
            found[name] = traceback.format_exc()
    scenarios.client.close()
    return found


if __name__ == "__main__":
    print(json.dumps(outcomes()))  # noqa: T201
