"""The TensorRT engine, over a TensorRT and a GPU that are not there: all of it but the driver's own calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2

from runtime.errors import InvalidArgument
from tests.worker.onnx_models import spec
from tests.worker.tensorrt_fake import (
    ACTIVATION_BYTES,
    WEIGHTS_BYTES,
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    FakeTensorRt,
    Ranges,
    Tensor,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    plan_bytes,
)
from worker.batching.tensor_model import TensorModel
from worker.cuda.driver import Device, DeviceMemoryFull
from worker.cuda.fake import DEFAULT_DEVICE, FakeDriver, Live
from worker.engine import EngineFailed, EngineUnavailable, ModelRefused, StagingEngine
from worker.engines import open_engine
from worker.engines.tensorrt.contexts import CACHE_FOLDER, KernelCaches
from worker.engines.tensorrt.engine import Settings, TensorRtEngine, assemble, read_settings
from worker.engines.tensorrt.runtime import Messages, use_tensorrt
from worker.lane import ThreadLane
from worker.types import CallContext, CompiledFor, ModelSpec, TensorSpec

NOTHING = Live(0, 0, 0, 0, 0)
ROWS = 8
ONE_PROFILE: tuple[Ranges, ...] = ({"x": [[1, 2], [4, 2], [ROWS, 2]]},)


def copying(kind: DataType = DataType.FLOAT, operation: str = "copy", width: int = 2) -> tuple[Tensor, ...]:
    shape = (-1, width)
    return (Tensor("x", TensorIOMode.INPUT, kind, shape), Tensor("y", TensorIOMode.OUTPUT, kind, shape))


class Machine:
    """A fake GPU with a fake TensorRT, and what was opened on it."""

    def __init__(self, device: Device = DEFAULT_DEVICE, **module: Any) -> None:
        self.driver = FakeDriver([device])
        self.module = FakeTensorRt(self.driver, **module)
        self.tensorrt = use_tensorrt(self.module, "tensorrt_rtx" if module.get("rtx") else "tensorrt")
        self.device = device

    def open(self, model: ModelSpec, plan: bytes, options: Settings | None = None) -> TensorRtEngine:
        return assemble(model, plan, self.tensorrt, self.driver, self.device, options or read_settings(model))


def model(**other: Any) -> ModelSpec:
    return spec(engine="tensorrt", max_batch_size=other.pop("max_batch_size", ROWS), **other)


def rows(count: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    return (np.arange(count * 2, dtype=np.float32) + np.float32(start)).reshape(count, 2)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@settings(deadline=None, max_examples=60)
@given(
    runs=st.lists(st.tuples(st.integers(1, ROWS), st.integers(0, 1), st.booleans()), max_size=40),
    graph_shapes=st.integers(0, 3),
    spin=st.booleans(),
)
def test_any_sequence_of_batches_is_answered_right_and_leaves_nothing_behind(
    runs: Sequence[tuple[int, int, bool]], graph_shapes: int, spin: bool
) -> None:
    machine = Machine()
    described = model(instances=2)
    engine = machine.open(described, plan_bytes("double", copying(), ONE_PROFILE), Settings(0, graph_shapes, spin=spin))
    answers = []
    for number, (count, slot, staged) in enumerate(runs):
        sent = rows(count, number)
        inputs = {"x": sent}
        if staged:
            given_out = engine.staging({"x": ((count, 2), "FP32")}, slot)
            assert given_out is not None
            given_out["x"][:] = sent
            inputs = dict(given_out)
        answers.append((sent.copy(), engine.run(inputs, slot)[0]))
        assert all(found.graphs <= graph_shapes for found in engine._slots)
    for sent, answer in answers:  # also those whose buffers were used again since
        np.testing.assert_array_equal(answer, sent * 2)
    largest_bytes = 2 * (ACTIVATION_BYTES + 2 * 512) + WEIGHTS_BYTES
    assert engine.device_bytes <= largest_bytes
    engine.close()
    engine.close()
    assert machine.driver.live == NOTHING
    assert (engine.device_bytes, engine.pinned_bytes) == (0, 0)


@pytest.mark.parametrize("kind", ["FLOAT", "HALF", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL"])
def test_values_pass_unchanged_in_every_datatype(machine: Machine, kind: str) -> None:
    names = {"FLOAT": "FP32", "HALF": "FP16"}
    datatype = names.get(kind, kind)
    described = model(inputs=[TensorSpec("x", datatype, (2,))], outputs=[TensorSpec("y", datatype, (2,))])
    engine = machine.open(described, plan_bytes("copy", copying(DataType[kind]), ONE_PROFILE))
    dtype = engine._slots[0]._inputs["x"].tensor.dtype
    sent = np.frombuffer(bytes(range(256))[: 4 * dtype.itemsize], dtype).reshape(2, 2)
    if kind == "BOOL":
        sent = np.array([[True, False], [False, True]])
    (answer,) = engine.run({"x": sent})
    assert answer.dtype == dtype
    assert answer.tobytes() == sent.tobytes()
    assert answer.flags.owndata


def test_inputs_may_be_views_that_cannot_be_written_and_are_not_contiguous(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE))
    whole = np.arange(16, dtype=np.float32).reshape(4, 4)
    whole.flags.writeable = False
    (answer,) = engine.run({"x": whole[::2, ::2]})
    np.testing.assert_array_equal(answer, whole[::2, ::2] * 2)


def test_a_shape_that_keeps_coming_gets_a_graph_and_is_launched(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE))
    for number in range(6):
        (answer,) = engine.run({"x": rows(4, number)})
        np.testing.assert_array_equal(answer, rows(4, number) * 2)
    assert engine._slots[0].graphs == 1
    assert machine.driver.launches == 3


def test_graphs_are_captured_again_when_a_buffer_moves(machine: Machine) -> None:
    wide: Ranges = {"x": [[1, 2], [4, 2], [4096, 2]]}
    engine = machine.open(model(max_batch_size=4096), plan_bytes("double", copying(), [wide]))
    for _ in range(4):
        engine.run({"x": rows(4)})
    assert machine.driver.launches == 1
    np.testing.assert_array_equal(engine.run({"x": rows(4000)})[0], rows(4000) * 2)
    assert engine._slots[0].graphs == 0
    for number in range(4):
        np.testing.assert_array_equal(engine.run({"x": rows(4, number)})[0], rows(4, number) * 2)
    assert engine._slots[0].graphs == 1
    engine.close()
    assert machine.driver.live == NOTHING


def test_the_number_of_graphs_is_bounded_and_a_full_house_is_slow_to_change(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE), Settings(graph_shapes=2))
    for _ in range(10):
        for count in range(1, ROWS + 1):
            engine.run({"x": rows(count)})
    assert engine._slots[0].graphs == 2
    assert machine.driver.live.graphs == 2
    for _ in range(64):
        engine.run({"x": rows(5)})
    launches = machine.driver.launches
    engine.run({"x": rows(5)})
    assert machine.driver.launches == launches + 1
    assert machine.driver.live.graphs == 2


def test_graphs_are_off_where_the_manifest_says_so(machine: Machine) -> None:
    engine = machine.open(model(parameters={"cuda_graphs": "off"}), plan_bytes("double", copying(), ONE_PROFILE))
    for _ in range(10):
        engine.run({"x": rows(4)})
    assert machine.driver.launches == 0


def test_a_plan_that_cannot_be_captured_runs_without_graphs(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE, capturable=False))
    for number in range(10):
        np.testing.assert_array_equal(engine.run({"x": rows(3, number)})[0], rows(3, number) * 2)
    assert (machine.driver.launches, len(machine.module.contexts)) == (0, 2)


def test_the_narrowest_profile_that_fits_is_used(machine: Machine) -> None:
    wide: Ranges = {"x": [[1, 2], [4, 2], [ROWS, 2]]}
    alone: Ranges = {"x": [[1, 2], [1, 2], [1, 2]]}
    engine = machine.open(model(), plan_bytes("double", copying(), [wide, alone]))
    for count, profile in ((1, 1), (2, 0), (1, 1), (ROWS, 0)):
        np.testing.assert_array_equal(engine.run({"x": rows(count)})[0], rows(count) * 2)
        assert machine.module.contexts[0]._state.profile == profile


def test_a_shape_outside_of_every_profile_is_refused_with_the_range(machine: Machine) -> None:
    engine = machine.open(model(max_batch_size=100), plan_bytes("double", copying(), ONE_PROFILE))
    assert engine.staging({"x": ((9, 2), "FP32")}) is None
    with pytest.raises(InvalidArgument, match=r"'x' has shape \[9, 2\]; the plan takes \[1, 2\] to \[8, 2\]"):
        engine.run({"x": rows(9)})
    np.testing.assert_array_equal(engine.run({"x": rows(2)})[0], rows(2) * 2)


def two_inputs() -> tuple[ModelSpec, tuple[Tensor, ...]]:
    tensors = (
        Tensor("a", TensorIOMode.INPUT, DataType.FLOAT, (-1, -1)),
        Tensor("b", TensorIOMode.INPUT, DataType.FLOAT, (-1, -1)),
        Tensor("y", TensorIOMode.OUTPUT, DataType.FLOAT, (-1, -1)),
    )
    inputs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))]
    return model(inputs=inputs, outputs=[TensorSpec("y", "FP32", (-1,))]), tensors


def test_shapes_that_no_one_profile_takes_together_are_refused_with_all_ranges(machine: Machine) -> None:
    described, tensors = two_inputs()
    low: Ranges = {name: [[1, 1], [1, 1], [8, 2]] for name in "ab"}
    high: Ranges = {name: [[1, 3], [1, 3], [8, 4]] for name in "ab"}
    engine = machine.open(described, plan_bytes("add", tensors, [low, high]))
    with pytest.raises(InvalidArgument, match=r"together; it takes 'a'.*; or 'a'"):
        engine.run({"a": rows(1), "b": np.zeros((1, 4), np.float32)})


def test_shapes_that_the_model_itself_refuses_are_the_callers_mistake(machine: Machine) -> None:
    described, tensors = two_inputs()
    any_width: Ranges = {name: [[1, 1], [1, 1], [8, 4]] for name in "ab"}
    engine = machine.open(described, plan_bytes("add", tensors, [any_width]))
    with pytest.raises(InvalidArgument, match="refuses inputs of these shapes together"):
        engine.run({"a": rows(1), "b": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(engine.run({"a": rows(2), "b": rows(2)})[0], rows(2) * 2)


def test_a_missing_input_is_named(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE))
    with pytest.raises(InvalidArgument, match="lacks inputs \\['x'\\]"):
        engine.run({})


def test_outputs_come_in_the_order_of_the_manifest_and_those_it_leaves_out_do_not_come(machine: Machine) -> None:
    tensors = (*copying(), Tensor("z", TensorIOMode.OUTPUT, DataType.FLOAT, (-1, 2)))
    tensors = (tensors[0], Tensor("y", TensorIOMode.OUTPUT, DataType.FLOAT, (-1, 1)), tensors[2])
    both = [TensorSpec("z", "FP32", (2,)), TensorSpec("y", "FP32", (1,))]
    plan = plan_bytes("widths", tensors, ONE_PROFILE)
    negative, sums = machine.open(model(outputs=both), plan).run({"x": rows(2)})
    np.testing.assert_array_equal(negative, -rows(2))
    np.testing.assert_array_equal(sums, [[1], [5]])
    (sums,) = machine.open(model(outputs=both[1:]), plan).run({"x": rows(2)})
    np.testing.assert_array_equal(sums, [[1], [5]])


def data_dependent() -> tuple[ModelSpec, tuple[Tensor, ...]]:
    tensors = (
        Tensor("x", TensorIOMode.INPUT, DataType.FLOAT, (-1, 2)),
        Tensor("y", TensorIOMode.OUTPUT, DataType.FLOAT, (-1,)),
    )
    inputs, outputs = [TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1,))]
    return model(inputs=inputs, outputs=outputs, max_batch_size=0), tensors


def test_an_output_whose_size_depends_on_the_values_is_given_whole_and_never_captured(machine: Machine) -> None:
    described, tensors = data_dependent()
    engine = machine.open(described, plan_bytes("positive", tensors, ONE_PROFILE))
    for count in (1, 8, 3, 3, 3, 3, 3):
        sent = rows(count, -3)
        (answer,) = engine.run({"x": sent})
        np.testing.assert_array_equal(answer, sent[sent > 0])
    (nothing,) = engine.run({"x": -rows(2)})
    assert nothing.shape == (0,)
    assert machine.driver.launches == 0
    engine.close()
    assert machine.driver.live == NOTHING


def test_an_output_that_cannot_grow_fails_its_request_and_not_the_next(machine: Machine) -> None:
    small = Device(0, "small", "8.0", ACTIVATION_BYTES + 2 * 512)
    machine = Machine(small)
    described, tensors = data_dependent()
    wide: Ranges = {"x": [[1, 2], [4, 2], [64, 2]]}
    engine = machine.open(described, plan_bytes("positive", tensors, [wide]))
    with pytest.raises(DeviceMemoryFull):
        engine.run({"x": rows(64)})
    np.testing.assert_array_equal(engine.run({"x": rows(2)})[0], [1, 2, 3])


def test_a_full_device_refuses_a_request_and_serves_the_next(machine: Machine) -> None:
    machine = Machine(Device(0, "small", "8.0", ACTIVATION_BYTES + 2 * 1024))
    wide: Ranges = {"x": [[1, 2], [4, 2], [4096, 2]]}
    engine = machine.open(model(max_batch_size=4096), plan_bytes("double", copying(), [wide]))
    for _ in range(4):
        engine.run({"x": rows(4)})
    with pytest.raises(DeviceMemoryFull):
        engine.run({"x": rows(4000)})
    for number in range(4):
        np.testing.assert_array_equal(engine.run({"x": rows(4, number)})[0], rows(4, number) * 2)
    engine.close()
    assert machine.driver.live == NOTHING


def test_a_device_too_full_to_open_on_is_left_as_it_was() -> None:
    machine = Machine(Device(0, "tiny", "8.0", ACTIVATION_BYTES + 100))
    with pytest.raises(DeviceMemoryFull):
        machine.open(model(instances=2), plan_bytes("double", copying(), ONE_PROFILE))
    assert machine.driver.live == NOTHING


def test_a_failed_execution_is_told_and_the_next_one_runs(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE))
    machine.module.breaks = True
    with pytest.raises(EngineFailed, match="log has the reason"):
        engine.run({"x": rows(2)})
    machine.module.breaks = False
    np.testing.assert_array_equal(engine.run({"x": rows(2)})[0], rows(2) * 2)


def test_slots_run_side_by_side(machine: Machine) -> None:
    engine = machine.open(model(instances=4), plan_bytes("double", copying(), ONE_PROFILE))
    wrong: list[str] = []

    def work(slot: int) -> None:
        for number in range(50):
            sent = rows(1 + (number + slot) % ROWS, 1000 * slot + number)
            if not np.array_equal(engine.run({"x": sent}, slot)[0], sent * 2):
                wrong.append(f"slot {slot}, run {number}")

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert engine.slots == 4
    engine.close()
    assert machine.driver.live == NOTHING


def test_batches_are_gathered_into_pinned_memory_and_not_copied_again(machine: Machine) -> None:
    engine = machine.open(model(), plan_bytes("double", copying(), ONE_PROFILE))
    assert isinstance(engine, StagingEngine)
    staged = engine.staging({"x": ((4, 2), "FP32")})
    assert staged is not None
    assert staged["x"].shape == (4, 2)
    assert staged["x"].dtype == np.float32
    assert staged["x"].ctypes.data == engine._slots[0]._inputs["x"].pinned.address
    assert engine.staging({"x": ((4, 2), "FP16")}) is None
    assert engine.staging({"other": ((4, 2), "FP32")}) is None


async def test_requests_at_once_are_batched_through_pinned_memory_on_every_stream(machine: Machine) -> None:
    described = model(instances=2)
    engine = machine.open(described, plan_bytes("double", copying(), ONE_PROFILE))
    served = TensorModel(described, engine, ThreadLane("first"))

    async def ask(number: int) -> bool:
        sent = rows(1 + number % 3, 10 * number)
        request = grpc_service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[sent.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=sent.shape)
        response = await served.infer(request, CallContext())
        return response.raw_output_contents[0] == (sent * 2).tobytes()

    assert all(await asyncio.gather(*(ask(number) for number in range(60))))
    assert served.statistics.success.count == 60
    await served.drained()
    served.close()


def test_an_input_that_decides_about_shapes_stays_on_the_host(machine: Machine) -> None:
    tensors = (Tensor("x", TensorIOMode.INPUT, DataType.FLOAT, (-1, 2), location=TensorLocation.HOST), copying()[1])
    engine = machine.open(model(), plan_bytes("copy", tensors, ONE_PROFILE))
    machine.module.breaks = True
    with pytest.raises(EngineFailed):
        engine.run({"x": rows(2)})
    buffers = engine._slots[0]._inputs["x"]
    assert machine.module.contexts[0]._state.addresses["x"] == buffers.pinned.address
    assert buffers.device.capacity_bytes == 0


@pytest.mark.parametrize(
    ("tensors", "described", "sentence"),
    [
        (copying(DataType.FP8), {}, "'x' of the plan is FP8, which no request can carry"),
        (
            (Tensor("x", TensorIOMode.INPUT, DataType.FLOAT, (-1, 2), TensorFormat.CHW32), copying()[1]),
            {},
            "vectorised format CHW32",
        ),
        (copying(DataType.HALF), {}, "'x' of model 'm' is FP16 in its file and FP32 in the manifest"),
        (copying(), {"inputs": [TensorSpec("other", "FP32", (2,))]}, "needs inputs \\['x'\\]"),
        (copying(), {"outputs": [TensorSpec("other", "FP32", (2,))]}, "no output 'other'"),
        (copying(), {"outputs": [TensorSpec("y", "FP32", (3,))]}, "\\[-1, 2\\] in its file and \\[-1, 3\\]"),
    ],
)
def test_a_plan_that_is_not_what_the_manifest_says_is_refused(
    machine: Machine, tensors: Sequence[Tensor], described: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        machine.open(model(**described), plan_bytes("copy", tensors, ONE_PROFILE))
    assert machine.driver.live == NOTHING


@pytest.mark.parametrize(
    ("compiled_for", "sentence"),
    [
        (CompiledFor("tensorrt", "1.7.1", ("8.9", "12.0")), "capability 8.9, 12.0, and this one .* has 8.0; .*--target 8.0"),
        (CompiledFor("tensorrt", "1.6.0", ("8.0",)), "compiled for tensorrt 1.6.0, and this worker has 1.7.1.116"),
        (CompiledFor("tensorrt_rtx", "1.7.1", ("8.0",)), "compiled for tensorrt_rtx, and this worker runs tensorrt"),
    ],
)
def test_a_plan_made_for_another_gpu_or_runtime_is_refused_before_it_is_opened(
    machine: Machine, compiled_for: CompiledFor, sentence: str
) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        machine.open(model(compiled_for=compiled_for), b"not even read")


@pytest.mark.parametrize("version", ["1.7.1", "1.7.1.116", "1.7", ""])
@pytest.mark.parametrize("capabilities", [(), ("8.0",), ("12.0", "8.0")])
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_lean"])
def test_a_plan_made_for_this_machine_is_opened(
    machine: Machine, runtime: str, version: str, capabilities: tuple[str, ...]
) -> None:
    described = model(compiled_for=CompiledFor(runtime, version, capabilities))
    machine.open(described, plan_bytes("double", copying(), ONE_PROFILE)).close()
    assert machine.driver.live == NOTHING


@pytest.mark.parametrize(
    ("rtx", "plan", "sentence"),
    [
        (False, b"rubbish", "cannot open the plan of model 'm': magic tag does not match"),
        (False, plan_bytes("copy", copying(), ONE_PROFILE, version="9.9"), "made by version 9.9"),
        (True, plan_bytes("copy", copying(), ONE_PROFILE, version="9.9"), "VERSION_MISMATCH; the plan was made by version"),
        (True, b"rubbish", "MALFORMED_ENGINE; magic tag"),
    ],
)
def test_what_the_runtime_cannot_open_is_refused_in_its_own_words(rtx: bool, plan: bytes, sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        Machine(rtx=rtx).open(model(), plan)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            [
                "Checking",
                "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In f at /_src/a.cpp:25 (cudaError 35: old))",
            ],
            "cudaError 35: old",
        ),
        (["IBuilder::b: Error Code 4: API Usage Error (No profile.\nIn validate at /_src/x.cpp:4023)", "later"], "No profile."),
        (["something else"], "something else"),
        ([], "TensorRT gave no reason"),
    ],
)
def test_what_tensorrt_says_is_told_without_its_own_places(said: list[str], sentence: str) -> None:
    messages = Messages()
    for line in said:
        messages.add(line)
    assert messages.first() == sentence


def test_rtx_captures_graphs_by_itself_unless_told_otherwise() -> None:
    plan = plan_bytes("double", copying(), ONE_PROFILE)
    for parameters, strategy, specialisation, launches in (
        ({}, "WHOLE_GRAPH_CAPTURE", "LAZY", 0),
        ({"kernel_specialization": "none"}, "WHOLE_GRAPH_CAPTURE", "NONE", 0),
        ({"cuda_graphs": "off"}, "DISABLED", "LAZY", 0),
        ({"cuda_graphs": "4"}, "DISABLED", "EAGER", 1),
    ):
        machine = Machine(rtx=True)
        engine = machine.open(model(parameters=parameters), plan)
        for _ in range(4):
            np.testing.assert_array_equal(engine.run({"x": rows(4)})[0], rows(4) * 2)
        (configuration,) = machine.module.configurations
        assert configuration.cuda_graph_strategy is CudaGraphStrategy[strategy]
        kernels = DynamicShapesKernelSpecializationStrategy[specialisation]
        assert configuration.dynamic_shapes_kernel_specialization_strategy is kernels
        assert machine.driver.launches == launches
        engine.close()
        assert machine.driver.live == NOTHING


def test_kernels_that_rtx_compiled_are_there_when_the_model_is_loaded_again() -> None:
    machine = Machine(rtx=True)
    plan = plan_bytes("double", copying(), ONE_PROFILE)
    engine = machine.open(model(), plan)
    compiled = machine.module.configurations[0].cache
    assert compiled is not None
    compiled.kernels = b"kernels of the first time"
    engine.close()
    machine.open(model(), plan).close()
    found = machine.module.configurations[1].cache
    assert found is not None
    assert found.kernels == b"kernels of the first time"


def test_compiled_kernels_outlive_the_process_only_where_the_operator_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KernelCaches().put("one", b"kernels")
    assert KernelCaches().get("one") is None
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "kernels"))
    KernelCaches().put("one", b"kernels")
    assert KernelCaches().get("one") == b"kernels"
    assert KernelCaches().get("two") is None
    assert [file.name for file in (tmp_path / "kernels").iterdir()] == ["one.kernels"]


def test_kept_kernels_are_bounded() -> None:
    caches = KernelCaches()
    for number in range(100):
        caches.put(f"plan {number}", b"k")
    assert caches.get("plan 0") is None
    assert caches.get("plan 99") == b"k"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"cuda_graphs": "many"}, "'many'; allowed: auto, off, or a number of shapes from 1 to 256"),
        ({"cuda_graphs": "0"}, "'0'; allowed"),
        ({"cuda_graphs": "257"}, "'257'; allowed"),
        ({"cuda_graphs": "²"}, "allowed"),
        ({"cuda_graphs": "4", "kernel_specialization": "lazy"}, "take eager or none"),
        ({"kernel_specialization": "quick"}, "'quick'; allowed: eager, lazy, none"),
        ({"wait": "long"}, "'long'; allowed: sleep, spin"),
        ({"device": "cpu"}, "'cpu'; allowed: cuda, cuda:<number>"),
        ({"device": "cuda:"}, "'cuda:'; allowed"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(parameters: dict[str, str], sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        read_settings(model(parameters=parameters))


def refused(open_it: Callable[[], object]) -> str:
    with pytest.raises((EngineUnavailable, ModelRefused)) as raised:
        open_it()
    return raised.value.message


def test_a_machine_that_lacks_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")
    assert "no file 'other.plan'" in refused(lambda: open_engine(model(parameters={"file": "other.plan"}), tmp_path))
    assert "leads out" in refused(lambda: open_engine(model(parameters={"file": "../x"}), tmp_path))
    unknown = model(compiled_for=CompiledFor("openvino", "1"))
    assert "runtime 'openvino'; known: tensorrt," in refused(lambda: open_engine(unknown, tmp_path))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "model.plan").write_bytes(b"plan")
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    for compiled_for, package, install in (
        (None, "tensorrt_rtx", "penstock[tensorrt]"),
        (CompiledFor("tensorrt_rtx", "1"), "tensorrt_rtx", "penstock[tensorrt]"),
        (CompiledFor("tensorrt_lean", "1"), "tensorrt_lean", "NVIDIA's index"),
    ):
        described = model(compiled_for=compiled_for)
        sentence = refused(lambda described=described: open_engine(described, tmp_path))  # type: ignore[misc]
        assert f"needs the package {package}" in sentence
        assert install in sentence
