"""Clients' shared memory: what may be opened, that a client which takes it away harms only itself, and what is closed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb

from runtime.errors import AlreadyExists, InvalidArgument, NotFound, PenstockError
from tests.worker.onnx_models import spec
from worker.kserve.codec import RequestCodec
from worker.kserve.shared_memory import SharedMemory, SharedMemoryFull, SharedMemoryPolicy, SharedMemoryRefused
from worker.types import TensorSpec

PREFIX = "penstock-test-"
FOLDER = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this system has no /dev/shm")

SPEC = spec(
    inputs=(
        TensorSpec("x", "FP32", (2,)),
        TensorSpec("s", "BYTES", (1,), optional=True),
        TensorSpec("b", "BOOL", (1,), optional=True),
    ),
    outputs=(TensorSpec("y", "FP32", (2,)), TensorSpec("t", "BYTES", (1,))),
    max_batch_size=4,
)


@pytest.fixture
def segment() -> Iterator[shared_memory.SharedMemory]:
    made = shared_memory.SharedMemory(f"{PREFIX}{uuid.uuid4().hex}", create=True, size=256)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(SharedMemoryPolicy(PREFIX, max_regions=3, max_bytes=1000))


def content(segment: shared_memory.SharedMemory) -> memoryview:
    assert segment.buf is not None
    return segment.buf


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_go_in_and_out(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    memory.register("r", f"/{segment.name}", 16, 64)
    content(segment)[20:24] = b"here"
    region = memory.region("r")
    assert bytes(region.read(4, 4)) == b"here"
    region.write(60, memoryview(b"tail"))
    assert bytes(content(segment)[76:80]) == b"tail"
    assert [(name, each.key, each.offset, each.byte_size) for name, each in memory] == [("r", f"/{segment.name}", 16, 64)]


@pytest.mark.parametrize(
    ("key", "kind", "sentence"),
    [
        ("", InvalidArgument, "is no name of shared memory"),
        ("/", InvalidArgument, "expected '/name'"),
        ("/..", InvalidArgument, "expected '/name'"),
        (f"/{PREFIX}a/../../etc/passwd", InvalidArgument, "expected '/name'"),
        (f"//{PREFIX}a", InvalidArgument, "expected '/name'"),
        (f"/{PREFIX}\0", InvalidArgument, "expected '/name'"),
        (f"/{PREFIX}{'x' * 255}", InvalidArgument, "expected '/name'"),
        ("/psm_of_somebody", SharedMemoryRefused, "begin with '/penstock-test-'"),
        (f"/{PREFIX}absent", NotFound, f"Unable to open shared memory region: '/{PREFIX}absent'"),
    ],
)
def test_names_that_are_not_opened(memory: SharedMemory, key: str, kind: type[PenstockError], sentence: str) -> None:
    with pytest.raises(kind) as refused:
        memory.register("r", key, 0, 8)
    assert sentence in refused.value.message
    assert not len(memory)


def test_only_plain_files_of_ones_own_are_opened(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    before = descriptors()
    link, pipe = FOLDER / f"{PREFIX}link-{os.getpid()}", FOLDER / f"{PREFIX}pipe-{os.getpid()}"
    try:
        link.symlink_to(FOLDER / segment.name)
        os.mkfifo(pipe)
        with pytest.raises(NotFound, match="Unable to open"):
            memory.register("r", f"/{link.name}", 0, 8)
        with pytest.raises(SharedMemoryRefused, match="another kind of file"):
            memory.register("r", f"/{pipe.name}", 0, 8)
    finally:
        link.unlink()
        pipe.unlink()
    assert descriptors() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user takes root")
def test_another_users_memory_is_refused(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    os.chown(FOLDER / segment.name, 12345, 12345)
    with pytest.raises(SharedMemoryRefused, match="belongs to another user"):
        memory.register("r", f"/{segment.name}", 0, 8)


def test_sizes_and_numbers_are_bounded(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    key = f"/{segment.name}"
    for offset, byte_size, sentence in ((0, 257, "has 256 bytes"), (250, 7, "has 256 bytes"), (0, 0, "0 bytes holds nothing")):
        with pytest.raises(InvalidArgument, match=sentence):
            memory.register("r", key, offset, byte_size)
    for name in "abc":
        memory.register(name, key, 0, 256)
    with pytest.raises(SharedMemoryFull, match="3 regions are registered"):
        memory.register("d", key, 0, 1)
    memory.unregister("a")
    memory.unregister("b")
    memory.register("a", key, 0, 256)
    with pytest.raises(SharedMemoryFull, match="512 bytes of shared memory are registered"):
        SharedMemory.register(memory, "e", key, 0, 489)


def test_names_are_unique_until_they_are_given_up(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    memory.register("r", segment.name, 0, 8)
    with pytest.raises(AlreadyExists, match="shared memory region 'r' already in manager"):
        memory.register("r", segment.name, 0, 8)
    memory.unregister("r")
    memory.unregister("r")
    memory.register("r", segment.name, 0, 8)
    for name in ("", "n" * 256):
        with pytest.raises(InvalidArgument, match="a region's name has 1 to 255"):
            memory.register(name, segment.name, 0, 8)
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'q'"):
        memory.region("q")


def test_a_region_in_use_outlives_its_registration_and_then_closes(
    memory: SharedMemory, segment: shared_memory.SharedMemory
) -> None:
    before = descriptors()
    memory.register("r", segment.name, 0, 8)
    region = memory.region("r")
    memory.unregister()
    content(segment)[:4] = b"kept"
    assert bytes(region.read(0, 4)) == b"kept"
    assert descriptors() == before + 1
    del region
    assert descriptors() == before


def test_a_client_that_truncates_its_memory_gets_a_sentence(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    """With a mapping this would be a SIGBUS."""
    memory.register("r", segment.name, 0, 256)
    region = memory.region("r")
    os.truncate(FOLDER / segment.name, 100)
    assert len(region.read(0, 100)) == 100
    for work in (lambda: region.read(0, 200), lambda: region.write(50, memoryview(bytes(100)))):
        with pytest.raises(InvalidArgument, match="is smaller than it was registered with"):
            work()


def tensor(
    message: Any, name: str, datatype: str, shape: tuple[int, ...], byte_size: int, offset: int = 0, region: str = "r"
) -> Any:
    added = message.inputs.add(name=name, datatype=datatype, shape=shape)
    shared(added.parameters, byte_size, offset, region)
    return added


def shared(parameters: Any, byte_size: int, offset: int = 0, region: str = "r") -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def test_inputs_from_shared_memory_beside_those_that_are_sent(
    memory: SharedMemory, segment: shared_memory.SharedMemory
) -> None:
    memory.register("r", segment.name, 0, 256)
    content(segment)[8:16] = np.array([1.5, 2.5], np.float32).tobytes()
    content(segment)[16:17] = b"\x07"
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="s", datatype="BYTES", shape=(1, 1))
    tensor(message, "x", "FP32", (1, 2), 8, 8)
    tensor(message, "b", "BOOL", (1, 1), 1, 16)
    message.raw_input_contents.append(b"\x02\0\0\0hi")
    codec = RequestCodec(SPEC)
    inputs = codec.decode(message, memory).inputs
    content(segment)[8:16] = bytes(8)  # what the client does now is too late
    assert (inputs["x"].tolist(), inputs["s"].tolist(), inputs["b"].tolist()) == ([[1.5, 2.5]], [[b"hi"]], [[True]])
    message.raw_input_contents.append(b"")
    with pytest.raises(InvalidArgument, match="2 raw_input_contents and 1 inputs that are not in shared memory"):
        codec.decode(message, memory)


def test_outputs_go_to_shared_memory_and_the_answer_says_so(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    memory.register("r", segment.name, 0, 256)
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(bytes(8))
    shared(message.outputs.add(name="t").parameters, 32, 100)
    message.outputs.add(name="y")
    codec = RequestCodec(SPEC)
    decoded = codec.decode(message, memory)
    outputs = [np.array([[3, 4]], np.float32), np.array([[b"word"]], object)]
    response = codec.response("", decoded.outputs, outputs)
    assert bytes(content(segment)[100:108]) == b"\x04\0\0\0word"
    told = response.outputs[0].parameters
    assert (told["shared_memory_region"].string_param, told["shared_memory_byte_size"].int64_param) == ("r", 8)
    assert told["shared_memory_offset"].int64_param == 100
    assert list(response.raw_output_contents) == [b"", outputs[0].tobytes()]
    outputs[1] = np.array([[b"w" * 29]], object)
    with pytest.raises(InvalidArgument, match="output 't' takes 33 bytes; the 32 of shared memory"):
        codec.response("", decoded.outputs, outputs)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p["shared_memory_byte_size"].CopyFrom(pb.InferParameter(int64_param=12)), "takes 8"),
        (lambda p: p["shared_memory_byte_size"].CopyFrom(pb.InferParameter(int64_param=257)), "which has 256"),
        (lambda p: p["shared_memory_byte_size"].CopyFrom(pb.InferParameter(int64_param=-1)), "which has 256"),
        (lambda p: p["shared_memory_offset"].CopyFrom(pb.InferParameter(int64_param=249)), "which has 256"),
        (lambda p: p["shared_memory_offset"].CopyFrom(pb.InferParameter(int64_param=-1)), "which has 256"),
        (
            lambda p: p["shared_memory_offset"].CopyFrom(pb.InferParameter(string_param="1")),
            "takes parameter 'shared_memory_offset'",
        ),
        (lambda p: p["shared_memory_region"].CopyFrom(pb.InferParameter(string_param="q")), "Unable to find"),
        (
            lambda p: p["shared_memory_region"].CopyFrom(pb.InferParameter(bool_param=True)),
            "'shared_memory_region' as string_param",
        ),
        (lambda p: p.pop("shared_memory_region"), "takes parameter 'shared_memory_region'"),
        (lambda p: p["shared_memory_colour"].CopyFrom(pb.InferParameter(bool_param=True)), "known are shared_memory_region"),
    ],
)
def test_parameters_that_do_not_fit(
    memory: SharedMemory, segment: shared_memory.SharedMemory, change: Any, sentence: str
) -> None:
    memory.register("r", segment.name, 0, 256)
    message = pb.ModelInferRequest(model_name="m")
    change(tensor(message, "x", "FP32", (1, 2), 8).parameters)
    with pytest.raises(PenstockError) as refused:
        RequestCodec(SPEC).decode(message, memory)
    assert sentence in refused.value.message


def test_an_input_without_data_is_told(memory: SharedMemory, segment: shared_memory.SharedMemory) -> None:
    memory.register("r", segment.name, 0, 256)
    message = pb.ModelInferRequest(model_name="m")
    tensor(message, "x", "FP32", (1, 2), 8)
    for name, datatype in (("s", "BYTES"), ("b", "BOOL")):
        message.inputs.add(name=name, datatype=datatype, shape=(1, 1))
    message.raw_input_contents.append(b"\0\0\0\0")
    with pytest.raises(InvalidArgument, match="input 'b' has no data"):
        RequestCodec(SPEC).decode(message, memory)


@settings(max_examples=100, deadline=None)
@given(
    registered=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    asked=st.tuples(st.integers(-300, 300), st.integers(-300, 300)),
)
def test_no_byte_outside_of_what_was_registered_is_read(registered: tuple[int, int], asked: tuple[int, int]) -> None:
    made = shared_memory.SharedMemory(f"{PREFIX}{uuid.uuid4().hex}", create=True, size=256)
    try:
        memory = SharedMemory(SharedMemoryPolicy(PREFIX))
        content(made)[:] = b"\1" * 256
        if sum(registered) <= 256:
            content(made)[registered[0] : sum(registered)] = bytes(registered[1])
        message = pb.ModelInferRequest(model_name="m")
        tensor(message, "x", "INT8", (abs(asked[1]),), asked[1], asked[0])
        codec = RequestCodec(spec(inputs=(TensorSpec("x", "INT8", (-1,)),), max_batch_size=0))
        try:
            memory.register("r", made.name, *registered)
            values = codec.decode(message, memory).inputs["x"]
        except PenstockError:
            return
        assert not values.any()
    finally:
        made.close()
        made.unlink()
