"""One contract for every engine that turns tensors into tensors, with real models in its own format.

An engine whose package or device is missing here skips, and says what is missing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import PenstockError
from tests.support.public_models import AFFINE as PUBLIC_AFFINE
from tests.support.public_models import IDENTITY as PUBLIC_IDENTITY
from tests.worker.onnx_models import spec
from tests.worker.tensorrt_fake import FakeTensorRt, plan_folder
from worker.cuda.fake import DEFAULT_DEVICE, FakeDriver
from worker.datatypes import DATATYPES
from worker.engine import Array, EngineUnavailable, ModelRefused, RemoteEngine, StagingEngine, TensorEngine, TextEngine
from worker.engines import ENGINES, open_engine
from worker.engines.tensorrt.plan import DATATYPE_NAMES
from worker.engines.tensorrt.runtime import use_tensorrt
from worker.tensors import object_array
from worker.types import ModelSpec, TensorSpec

NUMBERS = tuple(name for name in DATATYPES if name not in ("BYTES", "BF16"))


@dataclass(frozen=True, slots=True)
class Kind:
    engine: str
    datatypes: tuple[str, ...]
    file: str
    package: str = ""
    """Empty where the engine needs none that may be missing."""
    parameters: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "onnx": Kind("onnx", tuple(DATATYPES), "model.onnx", "onnxruntime"),
    "onnx in a process of its own": Kind("onnx", tuple(DATATYPES), "model.onnx", "", {"process": "own"}),
    "torch": Kind("torch", (*NUMBERS, "BF16"), "model.pt2", "torch"),
    "litert": Kind("litert", (*NUMBERS, "BYTES"), "model.tflite", "ai_edge_litert.interpreter"),
    "python": Kind("python", tuple(DATATYPES), "model.py"),
    # Over a GPU and a TensorRT that are not there; the real ones: tests/worker/cuda/test_driver.py, benchmarks/tensorrt_gpu.py.
    "tensorrt": Kind("tensorrt", tuple(DATATYPE_NAMES.values()), "model.plan"),
}
IDENTITY: dict[str, Callable[[Path, str], Path]] = {
    **PUBLIC_IDENTITY,
    "tensorrt": lambda folder, datatype: plan_folder(folder, "copy", datatype),
}
AFFINE: dict[str, Callable[[Path], Path]] = {**PUBLIC_AFFINE, "tensorrt": lambda folder: plan_folder(folder, "affine", "FP32")}
CHECKED_AT_OPEN = [name for name, kind in KINDS.items() if kind.engine != "python"]
"""Code says nothing of its tensors before it runs."""
EXTRAS = {"torch": "penstock[torch]", "litert": "penstock[litert]", "onnx": "onnxruntime"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


Open = Callable[..., TensorEngine]


@pytest.fixture
def opened(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens models of the kind, and closes them."""
    driver = FakeDriver()
    machine = use_tensorrt(FakeTensorRt(driver), "tensorrt"), driver, DEFAULT_DEVICE
    monkeypatch.setattr("worker.engines.tensorrt.engine.machine_for", lambda *_: machine)
    with contextlib.ExitStack() as stack:

        def open_it(described: ModelSpec, folder: Path) -> TensorEngine:
            engine = open_engine(described, folder)
            assert not isinstance(engine, TextEngine | RemoteEngine)
            stack.callback(engine.close)
            return engine

        yield open_it


def of(kind: Kind, datatype: str = "FP32", shape: tuple[int, ...] = (2,), **other: Any) -> ModelSpec:
    parameters = {**kind.parameters, **other.pop("parameters", {})}
    names = other.pop("names", ("x", "y"))
    return spec(
        engine=kind.engine,
        inputs=(TensorSpec(names[0], datatype, shape),),
        outputs=(TensorSpec(names[1], datatype, shape),),
        parameters=parameters,
        **other,
    )


def sample(datatype: str, rows: int) -> Array:
    """[rows, 2], with the extremes that the datatype has."""
    dtype = DATATYPES[datatype].dtype
    if datatype == "BYTES":
        return object_array([b"nul\x00inside" if index % 2 else "é".encode() for index in range(2 * rows)]).reshape(rows, 2)
    flat = np.arange(2 * rows).astype(dtype)
    if dtype.kind in "iu":
        flat[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    elif dtype.kind == "f":
        flat[:2] = -1.5, np.finfo(dtype).max
    if datatype == "BF16":
        flat[:] = 0x3F80 + np.arange(2 * rows)
    return flat.reshape(rows, 2)


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [(name, datatype) for name, kind in KINDS.items() for datatype in kind.datatypes],
    indirect=["kind"],
)
def test_values_pass_through_unchanged(kind: Kind, opened: Open, tmp_path: Path, datatype: str) -> None:
    engine = opened(of(kind, datatype), IDENTITY[kind.engine](tmp_path, datatype))
    for rows in (3, 1, 8):
        array = sample(datatype, rows)
        array.flags.writeable = False
        (output,) = engine.run({"x": array})
        assert output.tolist() == array.tolist()
        assert output.dtype == array.dtype


def test_batches_of_every_size_one_after_the_other(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    for rows in (1, 2, 8, 1, 5, 8):
        array = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        assert engine.run({"x": array})[0].tolist() == (2 * array + 1).tolist()


def test_outputs_stay_what_they_were(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    arrays = [np.full((4, 2), value, np.float32) for value in range(6)]
    kept = [engine.run({"x": array})[0] for array in arrays]
    assert [output[0, 0] for output in kept] == [1, 3, 5, 7, 9, 11]


def test_inputs_stay_what_they_were(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    array = np.ones((4, 2), np.float32)
    engine.run({"x": array})
    assert array.tolist() == np.ones((4, 2)).tolist()


@pytest.mark.parametrize("kind", ["python", "onnx in a process of its own", "tensorrt"], indirect=True)
def test_memory_of_its_own_for_inputs(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    assert isinstance(engine, StagingEngine)
    kept = []
    for rows in (2, 700, 1):  # larger than a page, and smaller again
        staged = engine.staging({"x": ((rows, 2), "FP32")})
        assert staged is not None
        staged["x"][:] = rows
        kept.append(engine.run(staged)[0])
    assert [output.tolist() for output in kept] == [[[2 * rows + 1] * 2] * rows for rows in (2, 700, 1)]
    assert engine.run({"x": np.zeros((1, 2), np.float32)})[0].tolist() == [[1, 1]]


def test_slots_run_side_by_side(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind, instances=2), AFFINE[kind.engine](tmp_path))
    assert engine.slots == 2
    wrong: list[object] = []
    both = threading.Barrier(2, timeout=60)

    def use(slot: int) -> None:
        both.wait()
        for turn in range(50):
            rows = turn % 5 + 1
            array = np.full((rows, 2), slot * 1000 + turn, np.float32)
            output = engine.run({"x": array}, slot)[0]
            if output.tolist() != (2 * array + 1).tolist():
                wrong.append((slot, turn, output))

    threads = [threading.Thread(target=use, args=(slot,)) for slot in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_run_harms_nothing(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    with pytest.raises(PenstockError) as failed:
        engine.run({"x": np.zeros((2, 3), np.float32)})
    assert failed.value.message
    assert "\n" not in failed.value.message
    assert engine.run({"x": np.zeros((1, 2), np.float32)})[0].tolist() == [[1, 1]]


def test_a_file_that_is_not_there(kind: Kind, opened: Open, tmp_path: Path) -> None:
    _here(kind)
    with pytest.raises(ModelRefused, match=f"has no file '{kind.file}'"):
        opened(of(kind), tmp_path)


def test_a_file_that_is_garbage_is_refused_in_one_line(kind: Kind, opened: Open, tmp_path: Path) -> None:
    _here(kind)
    (tmp_path / kind.file).write_bytes(b"\x89garbage\n" * 20)
    with pytest.raises(ModelRefused) as refused:
        opened(of(kind), tmp_path)
    assert "'m'" in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"datatype": "INT64"}, "is FP32 in its file and INT64 in the manifest"),
        ({"shape": (3,)}, "2] in its file and [-1, 3] in the manifest (batch dimension included)"),
        ({"shape": (2, 2)}, "2] in its file and [-1, 2, 2] in the manifest"),
        ({"names": ("q", "y")}, "needs inputs ['x'] that its manifest does not describe"),
        ({"max_batch_size": 0}, "2] in its file and [2] in the manifest"),
    ],
)
@pytest.mark.parametrize("kind", CHECKED_AT_OPEN, indirect=True)
def test_a_manifest_that_describes_another_model(
    kind: Kind, opened: Open, tmp_path: Path, wrong: dict[str, Any], sentence: str
) -> None:
    folder = IDENTITY[kind.engine](tmp_path, "FP32")
    with pytest.raises(ModelRefused) as refused:
        opened(of(kind, **wrong), folder)
    assert sentence in refused.value.message


@pytest.mark.parametrize("kind", CHECKED_AT_OPEN, indirect=True)
def test_an_output_that_the_model_does_not_have(kind: Kind, opened: Open, tmp_path: Path) -> None:
    folder = IDENTITY[kind.engine](tmp_path, "FP32")
    with pytest.raises(ModelRefused, match=r"has no output 'q'; it has: \['y'\]"):
        opened(of(kind, names=("x", "q")), folder)


def test_closing_twice(kind: Kind, opened: Open, tmp_path: Path) -> None:
    engine = opened(of(kind), AFFINE[kind.engine](tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(PenstockError):
        engine.run({"x": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.package])
def test_a_package_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    monkeypatch.setitem(sys.modules, kind.package, None)
    with pytest.raises(EngineUnavailable) as missing:
        open_engine(of(kind), tmp_path)
    assert f"engine {kind.engine!r} needs the package" in missing.value.message
    assert EXTRAS[kind.engine] in missing.value.message


def test_every_engine_of_tensors_is_held_to_this() -> None:
    elsewhere = {"llm", "upstream"}  # they make text
    assert {kind.engine for kind in KINDS.values()} == ENGINES.keys() - elsewhere


def _here(kind: Kind) -> None:
    if kind.package:
        pytest.importorskip(kind.package, reason=f"the package {kind.package} is not installed")
