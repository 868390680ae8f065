"""What a manifest describes and what a file holds: when they agree, and how parameters read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.onnx_models import spec
from worker.engine import ModelRefused
from worker.engines.described import (
    Found,
    check_tensors,
    choice,
    cuda_device,
    engine_inputs,
    engine_outputs,
    fits,
    model_file,
    number,
    seconds,
)
from worker.types import SequenceControl, SequenceControlKind, SequenceSpec, SequenceState, TensorSpec

SEQUENCES = SequenceSpec(
    controls=(SequenceControl("start", SequenceControlKind.START, "BOOL"),),
    states=(SequenceState("h", "h_out", "FP32", (4,)), SequenceState("c", "y", "FP32", (2,))),
)
sizes = st.integers(1, 5)


def left_open(size: int, index: int) -> st.SearchStrategy[int | str]:
    return st.sampled_from((size, -1)) | st.just(f"d{index}")


def test_a_model_of_sequences_is_fed_its_controls_and_states() -> None:
    described = spec(sequences=SEQUENCES)
    assert [(tensor.name, tensor.shape) for tensor in engine_inputs(described)] == [
        ("x", (2,)),
        ("start", (1,)),
        ("h", (4,)),
        ("c", (2,)),
    ]
    assert [tensor.name for tensor in engine_outputs(described)] == ["y", "h_out"]


def test_tensors_that_the_spec_names_already_are_not_named_twice() -> None:
    described = spec(sequences=SEQUENCES)
    again = spec(inputs=engine_inputs(described), outputs=engine_outputs(described), sequences=SEQUENCES)
    assert engine_inputs(again) == engine_inputs(described)
    assert engine_outputs(again) == engine_outputs(described)


@given(st.lists(sizes, min_size=1, max_size=4), st.data())
def test_a_file_takes_what_it_leaves_open_and_its_own_sizes(shape: list[int], data: st.DataObject) -> None:
    in_file = tuple(data.draw(left_open(size, index)) for index, size in enumerate(shape))
    tensor = TensorSpec("x", "FP32", tuple(shape))
    described = spec(inputs=(tensor,), outputs=(tensor,), max_batch_size=0)
    check_tensors(described, [Found("x", "FP32", in_file)], [Found("x", "FP32", in_file)])
    index = data.draw(st.integers(0, len(shape) - 1))
    wrong = (*in_file[:index], shape[index] + 1, *in_file[index + 1 :])
    with pytest.raises(ModelRefused, match="in its file"):
        check_tensors(described, [Found("x", "FP32", wrong)], [Found("x", "FP32", in_file)])


@given(st.lists(sizes, max_size=3), sizes, st.data())
def test_an_array_fits_what_is_described(shape: list[int], rows: int, data: st.DataObject) -> None:
    tensor = TensorSpec("y", "FP32", tuple(data.draw(st.sampled_from([size, -1])) for size in shape))
    assert fits(tensor, (rows, *shape), batched=True)
    assert fits(tensor, shape, batched=False)
    assert not fits(tensor, shape, batched=True)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/../../b"])
def test_a_file_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelRefused, match="leads out of the model's folder"):
        model_file(spec(parameters={"file": name}), tmp_path, "model.onnx")


@given(st.text(max_size=6))
def test_a_parameter_is_a_value_within_its_limits_or_a_refusal(text: str) -> None:
    described = spec(parameters={"p": text, "device": text or "cpu"})
    reads: tuple[Callable[[], bool], ...] = (
        lambda: 1 <= number(described, "p", 3, least=1, most=9) <= 9,
        lambda: 0 < seconds(described, "p", 3.0, most_s=9.0) <= 9,
        lambda: choice(described, "p", "a", ("a", "b")) in ("a", "b"),
        lambda: (cuda_device(described) or 0) >= 0,
    )
    for read in reads:
        try:
            assert read()
        except ModelRefused as refused:
            assert repr(text) in refused.message
