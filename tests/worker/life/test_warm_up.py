"""Warm-ups: what an engine is given before its copy answers, and what becomes of a load whose warm-up fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InvalidArgument
from tests.worker.onnx_models import lookup, spec
from worker.copies import open_model
from worker.engine import Array
from worker.life.warm_up import WarmUpFailed, warm_up, warm_up_inputs
from worker.tensors import to_raw
from worker.types import (
    ModelSpec,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    TensorSpec,
    WarmUpData,
    WarmUpInput,
    WarmUpSpec,
)

X = TensorSpec("x", "FP32", (2, -1))
NAMES = TensorSpec("names", "BYTES", (1,))
MAYBE = TensorSpec("maybe", "INT64", (1,), optional=True)


@dataclass
class Noting:
    """A tensor engine that notes what it is given."""

    slots: int = 1
    utf8_bytes: bool = False
    failing: bool = False
    runs: list[tuple[int, dict[str, tuple[int, ...]]]] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        if self.failing:
            raise InvalidArgument("index 0 is out of range")
        self.runs.append((slot, {name: array.shape for name, array in inputs.items()}))
        return []

    def close(self) -> None:
        return


def declared(*inputs: WarmUpInput, rows: int = 0, count: int = 1) -> WarmUpSpec:
    return WarmUpSpec("first", rows, count, inputs)


def model(*warm_ups: WarmUpSpec, inputs: Sequence[TensorSpec] = (X, NAMES, MAYBE), **other: Any) -> ModelSpec:
    return spec(inputs=inputs, warm_ups=warm_ups, **other)


def test_without_any_one_execution_of_zeros_is_made_on_each_slot(tmp_path: Path) -> None:
    engine = Noting(slots=3)
    warm_up(model(), engine, tmp_path)
    assert engine.runs == [(slot, {"x": (1, 2, 1), "names": (1, 1)}) for slot in range(3)]
    inputs = warm_up_inputs(model(), WarmUpSpec("zeros"), tmp_path)
    assert inputs["names"].tolist() == [[b""]]
    assert not inputs["x"].any()


def test_its_failure_is_no_reason_to_refuse_and_that_of_a_declared_one_is(tmp_path: Path) -> None:
    warm_up(model(), Noting(failing=True), tmp_path)
    with pytest.raises(WarmUpFailed, match="warm-up 'first' of model 'm' version 1 failed: index 0 is out of range"):
        warm_up(model(declared()), Noting(failing=True), tmp_path)


def test_each_declared_one_runs_so_often_with_so_many_rows_on_each_slot(tmp_path: Path) -> None:
    engine = Noting(slots=2)
    wide = WarmUpInput("x", WarmUpData.ZEROS, shape=(2, 5))
    warm_up(model(declared(rows=8, count=2), declared(wide), max_batch_size=8), engine, tmp_path)
    full, single = {"x": (8, 2, 1), "names": (8, 1)}, {"x": (1, 2, 5), "names": (1, 1)}
    assert engine.runs == [(0, full), (0, full), (1, full), (1, full), (0, single), (1, single)]


def test_a_model_without_batches_is_given_no_rows_and_an_optional_input_only_if_it_is_named(tmp_path: Path) -> None:
    engine = Noting()
    warm_up(model(declared(WarmUpInput("maybe", WarmUpData.ZEROS)), max_batch_size=0), engine, tmp_path)
    assert engine.runs == [(0, {"x": (2, 1), "names": (1,), "maybe": (1,)})]


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "INT32", "UINT64", "FP16", "FP32", "FP64", "BF16", "BYTES"])
def test_random_data_is_of_the_datatype_not_all_alike_and_the_same_each_time(tmp_path: Path, datatype: str) -> None:
    tensor = TensorSpec("x", datatype, (64,))
    asked = declared(WarmUpInput("x", WarmUpData.RANDOM), rows=2)
    first, second = (warm_up_inputs(model(inputs=[tensor]), asked, tmp_path)["x"] for _ in range(2))
    assert first.shape == (2, 64)
    assert (first == second).all()
    assert len(set(first.reshape(-1).tolist())) > 1
    if datatype == "BF16":
        assert first.dtype == np.uint16
        as_floats = (first.astype(np.uint32) << 16).view(np.float32)
        assert ((as_floats >= 0) & (as_floats <= 1)).all()


@pytest.mark.parametrize("whole", [False, True], ids=["one row", "all rows"])
def test_a_file_of_the_model_holds_one_row_or_all_of_them(tmp_path: Path, whole: bool) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.raw").write_bytes((rows if whole else rows[:1]).tobytes())
    asked = declared(WarmUpInput("x", WarmUpData.FILE, (2, 2), "data/x.raw"), rows=3)
    got = warm_up_inputs(model(), asked, tmp_path)["x"]
    assert (got == (rows if whole else np.repeat(rows[:1], 3, axis=0))).all()


def test_strings_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(to_raw(np.array([b"one"], dtype=object)))
    asked = declared(WarmUpInput("names", WarmUpData.FILE, file="names"), rows=2)
    assert warm_up_inputs(model(), asked, tmp_path)["names"].tolist() == [[b"one"], [b"one"]]


def test_a_file_of_another_size_outside_of_the_folder_or_not_there_fails_the_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "short").write_bytes(b"123")
    for name, sentence in (
        ("../outside", "no file of the model"),
        (str(tmp_path / "outside"), "no file of the model"),
        ("link", "no file of the model"),
        ("nowhere", "no file of the model"),
        ("short", "3 bytes of data"),
    ):
        asked = declared(WarmUpInput("x", WarmUpData.FILE, (2, 2), name))
        with pytest.raises(WarmUpFailed, match=sentence):
            warm_up(model(asked), Noting(), folder)


def test_what_sequences_add_is_given_too(tmp_path: Path) -> None:
    sequences = SequenceSpec(
        controls=(
            SequenceControl("start", SequenceControlKind.START, "INT32"),
            SequenceControl("end", SequenceControlKind.END, "BOOL"),
            SequenceControl("ready", SequenceControlKind.READY, "BOOL"),
            SequenceControl("id", SequenceControlKind.CORRID, "UINT64"),
        ),
        states=(SequenceState("before", "after", "FP32", (3,)),),
    )
    inputs = warm_up_inputs(model(inputs=[X], sequences=sequences), declared(rows=2), tmp_path)
    assert {name: array.tolist() for name, array in inputs.items() if name != "x"} == {
        "start": [[1], [1]],
        "end": [[False], [False]],
        "ready": [[True], [True]],
        "id": [[0], [0]],
        "before": [[0.0] * 3] * 2,
    }


async def test_a_load_with_a_failing_warm_up_is_refused_and_frees_its_engine(tmp_path: Path) -> None:
    ids = TensorSpec("x", "INT64", (1,))
    folder = lookup(tmp_path)
    (folder / "far").write_bytes((99).to_bytes(8, "little"))
    described = model(
        WarmUpSpec("far", inputs=(WarmUpInput("x", WarmUpData.FILE, file="far"),)),
        inputs=[ids],
        outputs=(TensorSpec("y", "FP32", (1,)),),
    )
    with pytest.raises(WarmUpFailed, match="warm-up 'far'"):
        await open_model(described, folder)
