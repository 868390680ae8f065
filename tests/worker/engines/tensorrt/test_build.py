"""Real plans, built on whatever machine this is: TensorRT-RTX needs no GPU for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import PenstockError
from tests.worker.onnx_models import save, spec
from worker.cuda.driver import open_driver
from worker.engine import EngineUnavailable, ModelRefused
from worker.engines import open_engine
from worker.engines.tensorrt.build import BuildOptions, BuildRefused, BuildStopped, build_plan, find_builder, resolve_targets
from worker.engines.tensorrt.plan import ShapeRange, Tensor
from worker.engines.tensorrt.profiles import ProfileRefused, parse_profiles
from worker.engines.tensorrt.runtime import TensorRt
from worker.types import CompiledFor, TensorSpec

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'penstock[tensorrt]'")
SM80 = ("sm80",)


@pytest.fixture(scope="module")
def tensorrt() -> TensorRt:
    return find_builder()


def cnn(folder: Path, *nodes: Any, batch: Any = "rows") -> Path:
    """A small convolutional network, 1×8×8 to 10 numbers."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "matrix": random.standard_normal((8, 10)).astype(np.float32),
    }
    layers = [
        helper.make_node("Conv", ["image", "kernel"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["logits"], name="last"),
    ]
    save(
        folder,
        [*layers, *nodes],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return folder / "model.onnx"


def quantised(folder: Path) -> Path:
    """The product of quantised numbers."""
    random = np.random.default_rng(0)
    save(
        folder,
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"]),
            helper.make_node("MatMul", ["d", "dw"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [
            numpy_helper.from_array(np.array(0.05, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
            numpy_helper.from_array(random.integers(-100, 100, (32, 32)).astype(np.int8), "w"),
        ],
    )
    return folder / "model.onnx"


def refusal(tensorrt: TensorRt, file: Path, **options: Any) -> str:
    with pytest.raises(PenstockError) as raised:
        build_plan(tensorrt, file, replace(BuildOptions(max_batch_size=4, targets=SM80), **options))
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_cnn_becomes_a_plan_with_a_dynamic_batch(tensorrt: TensorRt, tmp_path: Path, precision: str) -> None:
    phases: dict[str, int] = {}

    def on_progress(phase: str, done: int, steps: int) -> bool:
        assert 0 <= done <= steps
        phases[phase] = done
        return True

    profiles = parse_profiles(["image:1x1x8x8,8x1x8x8,32x1x8x8"])
    options = BuildOptions(profiles, targets=("sm80", "8.9"), precision=precision)
    built = build_plan(tensorrt, cnn(tmp_path), options, on_progress)
    assert len(built.plan) > 10_000
    assert built.inputs == (Tensor("image", "FP32", (-1, 1, 8, 8)),)
    assert built.outputs == (Tensor("logits", "FP32", (-1, 10)),)
    assert built.profiles == ({"image": ShapeRange((1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))},)
    assert built.max_batch_size == 32
    assert (built.runtime, built.compute_capabilities) == ("tensorrt_rtx", ("8.0", "8.9"))
    assert built.version == tensorrt.version
    assert phases


def test_several_profiles_go_into_one_plan(tensorrt: TensorRt, tmp_path: Path) -> None:
    profiles = parse_profiles(["image:1x1x8x8", "image:1x1x8x8,16x1x8x8,64x1x8x8"])
    built = build_plan(tensorrt, cnn(tmp_path), BuildOptions(profiles, targets=SM80))
    assert (len(built.profiles), built.max_batch_size) == (2, 64)


def test_a_fixed_batch_is_no_batch_dimension(tensorrt: TensorRt, tmp_path: Path) -> None:
    built = build_plan(tensorrt, cnn(tmp_path, batch=4), BuildOptions(targets=SM80))
    assert (built.max_batch_size, built.inputs[0].shape) == (0, (4, 1, 8, 8))


def test_a_quantised_graph_becomes_an_int8_plan(tensorrt: TensorRt, tmp_path: Path) -> None:
    options = BuildOptions(max_batch_size=8, targets=SM80, precision="int8")
    assert build_plan(tensorrt, quantised(tmp_path), options).max_batch_size == 8


def test_int8_without_quantisation_is_refused_and_told_how(tensorrt: TensorRt, tmp_path: Path) -> None:
    assert "quantise it first" in refusal(tensorrt, cnn(tmp_path), precision="int8")


def test_what_is_no_onnx_is_refused(tensorrt: TensorRt, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    assert "model.onnx cannot be read as ONNX" in refusal(tensorrt, tmp_path / "model.onnx")
    assert "there is no file" in refusal(tensorrt, tmp_path / "absent.onnx")


def test_an_operator_that_is_not_there_is_named_with_its_node(tensorrt: TensorRt, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = onnx.load(str(cnn(tmp_path)))
    model.graph.node[1].op_type, model.graph.node[1].name = "Wobble", "second"
    onnx.save(model, str(file))
    assert "has no operator for node 'second' (Wobble)" in refusal(tensorrt, file)


def test_a_profile_that_does_not_fit_is_refused_before_anything_is_built(tensorrt: TensorRt, tmp_path: Path) -> None:
    file = cnn(tmp_path)
    with pytest.raises(ProfileRefused, match="no input 'x'"):
        build_plan(tensorrt, file, BuildOptions(parse_profiles(["x:1x1x8x8"])))
    with pytest.raises(ProfileRefused, match=r"\[1, 3, 8, 8\]; the model takes \[-1, 1, 8, 8\]"):
        build_plan(tensorrt, file, BuildOptions(parse_profiles(["image:1x3x8x8"])))


def test_targets_are_written_in_several_ways_and_an_unknown_one_is_told_the_known(tensorrt: TensorRt, tmp_path: Path) -> None:
    assert resolve_targets(tensorrt, ["sm80", "8.6", "89", "sm_120", "SM80"]) == ("SM80", "SM86", "SM89", "SM120")
    assert resolve_targets(tensorrt, []) == ("SM80", "SM86", "SM89", "SM120")
    sentence = refusal(tensorrt, cnn(tmp_path), targets=("sm80", "sm90"))
    assert "target 'sm90' is none" in sentence
    assert "sm80 (8.0)" in sentence


def test_a_target_that_lacks_an_operation_is_refused_in_tensorrts_words(tensorrt: TensorRt, tmp_path: Path) -> None:
    sentence = refusal(tensorrt, cnn(tmp_path), targets=("sm75",))
    assert "FP32 GEMM is not supported" in sentence
    assert "/_src/" not in sentence


def test_the_current_gpu_as_a_target_needs_one(tensorrt: TensorRt, tmp_path: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises((EngineUnavailable, BuildRefused)):
        build_plan(tensorrt, cnn(tmp_path), BuildOptions(max_batch_size=4, targets=("current",)))


def test_a_build_can_be_stopped(tensorrt: TensorRt, tmp_path: Path) -> None:
    with pytest.raises(BuildStopped):
        build_plan(tensorrt, cnn(tmp_path), BuildOptions(max_batch_size=4, targets=SM80), lambda *_: False)


def test_rtx_plans_are_for_one_release(tensorrt: TensorRt, tmp_path: Path) -> None:
    assert "leave out --version-compatible" in refusal(tensorrt, cnn(tmp_path), version_compatible=True)


@pytest.mark.parametrize("runtime", ["tensorrt_lean", "openvino"])
def test_what_builds_nothing_is_no_builder(runtime: str) -> None:
    with pytest.raises(EngineUnavailable):
        find_builder(runtime)


def has_gpu() -> bool:
    try:
        open_driver()
    except EngineUnavailable:
        return False
    return True


def test_without_a_gpu_a_real_plan_is_not_opened_and_the_reason_is_said(tensorrt: TensorRt, tmp_path: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    built = build_plan(tensorrt, cnn(tmp_path), BuildOptions(max_batch_size=4, targets=SM80))
    (tmp_path / "model.plan").write_bytes(built.plan)
    described = spec(
        engine="tensorrt",
        max_batch_size=4,
        inputs=[TensorSpec("image", "FP32", (1, 8, 8))],
        outputs=[TensorSpec("logits", "FP32", (10,))],
        compiled_for=CompiledFor(built.runtime, built.version, built.compute_capabilities),
    )
    with pytest.raises(EngineUnavailable, match=r"needs an NVIDIA driver|needs the package cuda-bindings"):
        open_engine(described, tmp_path)


def test_a_plan_for_an_unknown_runtime_is_refused_without_looking_for_it(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")
    with pytest.raises(ModelRefused, match="runtime 'openvino'"):
        open_engine(spec(engine="tensorrt", compiled_for=CompiledFor("openvino", "1")), tmp_path)
