"""`penstock build-engine`, from the command line to a model folder that can be pushed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.__main__ import app
from cli.build_engine import _interruptible, describe
from runtime.model_folder import read_model_folder
from worker.engines.tensorrt.build import Built, OnProgress
from worker.engines.tensorrt.plan import ShapeRange, Tensor

SUMS = Path(__file__).parents[2] / "cli" / "demo" / "sums"
DIGITS = Path(__file__).parents[2] / "cli" / "demo" / "digits" / "model.onnx"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["build-engine", *arguments], env={"COLUMNS": "200"})


def build(output: Path, *arguments: str) -> Result:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'penstock[tensorrt]'")
    return command(str(DIGITS), "--output", str(output), *arguments)


def test_an_onnx_file_becomes_a_model_folder(tmp_path: Path) -> None:
    output = tmp_path / "digits-rtx"
    profile = "image:1x1x8x8,8x1x8x8,64x1x8x8"
    result = build(output, "--profile", profile, "--target", "sm80,8.9", "--target", "sm120", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert f"next: penstock models push {output}" in result.output
    manifest = read_model_folder(output).manifest
    assert (manifest.model, manifest.engine, manifest.max_batch_size) == ("digits-rtx", "tensorrt", 64)
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in manifest.inputs] == [("image", "FP32", [1, 8, 8])]
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in manifest.outputs] == [("logits", "FP32", [10])]
    assert manifest.compiled_for.runtime == "tensorrt_rtx"
    assert manifest.compiled_for.version.count(".") == 2
    assert list(manifest.compiled_for.compute_capabilities) == ["8.0", "8.9", "12.0"]
    assert sorted(file.name for file in output.iterdir()) == ["model.plan", "model.toml"]


def test_a_language_models_folder_becomes_one_with_a_plan(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'penstock[tensorrt]'")
    output = tmp_path / "sums-rtx"
    output.mkdir()
    (output / "tokenizer.json").write_text("of an earlier build")
    result = command(str(SUMS), "--output", str(output), "--target", "sm80", "--sequences", "4", "--context-length", "128")
    assert result.exit_code == 0, result.output
    assert (output / "tokenizer.json").read_bytes() == (SUMS / "tokenizer.json").read_bytes()
    manifest = read_model_folder(output).manifest
    assert (manifest.model, manifest.engine, manifest.task, manifest.max_batch_size) == ("sums-rtx", "tensorrt", "chat", 0)
    assert dict(manifest.parameters) == {"context_length": "128"}
    assert [tensor.name for tensor in (*manifest.inputs, *manifest.outputs)] == ["text_input", "text_output"]
    assert list(manifest.compiled_for.compute_capabilities) == ["8.0"]
    assert sorted(file.name for file in output.iterdir()) == [
        *("genai_config.json", "model.plan", "model.toml", "tokenizer.json", "tokenizer_config.json")
    ]


def test_building_again_replaces_what_was_built(tmp_path: Path) -> None:
    for rows in ("4", "8"):
        result = build(tmp_path / "digits", "--max-batch-size", rows, "--target", "sm80", "--name", "other")
        assert result.exit_code == 0, result.output
    manifest = read_model_folder(tmp_path / "digits").manifest
    assert (manifest.model, manifest.max_batch_size) == ("other", 8)


def test_rows_that_no_profile_takes_are_told(tmp_path: Path) -> None:
    result = build(tmp_path / "digits", "--profile", "image:4x1x8x8,8x1x8x8,8x1x8x8", "--target", "sm80")
    assert "requests of fewer than 4 rows will be refused" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --profile 'image:1x1x8x8,8x1x8x8,32x1x8x8'"),
        (("--profile", "image:1x3x8x8"), "the model takes [-1, 1, 8, 8]"),
        (("--max-batch-size", "4", "--target", "sm90"), "target 'sm90' is none"),
        (("--max-batch-size", "4", "--precision", "fp4"), "no precision 'fp4'; known: fp32, fp16, bf16, int8"),
        (("--max-batch-size", "4", "--runtime", "openvino"), "no runtime 'openvino'"),
        (("--profile", "image"), "profile 'image' names no input"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_no_folder(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = build(tmp_path / "digits", *arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "digits").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    result = command(str(DIGITS), "--output", str(tmp_path), "--name", "digits", "--max-batch-size", "4")
    assert result.exit_code == 1
    assert "holds 'thesis.txt'" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    result = command(str(DIGITS), "--output", str(tmp_path / "a folder"), "--max-batch-size", "4")
    assert "model name 'a folder' may hold" in result.stderr


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    result = command(str(DIGITS), "--output", str(tmp_path / "digits"), "--max-batch-size", "4")
    assert "needs the package tensorrt_rtx: pip install 'penstock[tensorrt]'" in result.stderr


async def test_cancelling_ends_the_build_between_two_steps() -> None:
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    ended: list[str] = []

    def build(watched: OnProgress) -> str:
        loop.call_soon_threadsafe(begun.set)
        while watched("a phase", 0, 1):
            pass
        ended.append("stopped")
        return "a plan nobody wants"

    building = asyncio.create_task(_interruptible(build, lambda *_: True))
    await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert ended == ["stopped"]


def test_names_of_every_kind_survive_the_description(tmp_path: Path) -> None:
    tensors = (Tensor('in "0"\\:\n\x7f→', "BF16", (-1, -1, 3)), Tensor("b", "INT64", (-1,)))
    ranges = {tensor.name: ShapeRange((1,), (1,), (1,)) for tensor in tensors}
    built = Built(b"plan", tensors, tensors[1:], (ranges,), 16, "tensorrt", "10.3.0", ("9.0",), 0)
    (tmp_path / "model.toml").write_text(describe("m", built, 'made of "x"'))
    (tmp_path / "model.plan").write_bytes(built.plan)
    manifest = read_model_folder(tmp_path).manifest
    assert manifest.inputs[0].name == tensors[0].name
    assert [list(tensor.shape) for tensor in manifest.inputs] == [[-1, 3], []]
    assert manifest.description == 'made of "x"'
