"""Whether a model's files hold what its manifest describes, and how a manifest's parameters read: the same for every engine.

Pure. Decides what an engine is fed and what it gives back, and refuses in sentences; what a file holds is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.engine import ModelRefused
from worker.types import ModelSpec, TensorSpec

_MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor as a model's file has it. `datatype` is KServe's name, or what the file calls one that has none."""

    name: str
    datatype: str
    shape: tuple[int | str, ...] | None
    """The batch dimension included; a name or -1 = variable; None = left open."""


def engine_inputs(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """What the engine is fed: the manifest's inputs, then a sequence's controls and states. Batch dimensions are left out."""
    if spec.sequences is None:
        return spec.inputs
    named = {tensor.name for tensor in spec.inputs}
    controls = (TensorSpec(control.input, control.datatype, (1,)) for control in spec.sequences.controls)
    states = (TensorSpec(state.input, state.datatype, state.shape) for state in spec.sequences.states)
    return spec.inputs + tuple(tensor for tensor in (*controls, *states) if tensor.name not in named)


def engine_outputs(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """What the engine gives: the manifest's outputs, then the states that are not among them."""
    if spec.sequences is None:
        return spec.outputs
    named = {output.name for output in spec.outputs}
    states = (TensorSpec(state.output, state.datatype, state.shape) for state in spec.sequences.states)
    return spec.outputs + tuple(state for state in states if state.name not in named)


def check_tensors(spec: ModelSpec, inputs: Sequence[Found], outputs: Sequence[Found]) -> None:
    """The file's tensors are those of the manifest. An output that the manifest leaves out is fine. Raises ModelRefused."""
    described = engine_inputs(spec)
    if missing := {tensor.name for tensor in inputs} - {tensor.name for tensor in described}:
        raise ModelRefused(f"model {spec.model!r} needs inputs {sorted(missing)} that its manifest does not describe")
    _check(spec, "input", described, {tensor.name: tensor for tensor in inputs})
    _check(spec, "output", engine_outputs(spec), {tensor.name: tensor for tensor in outputs})


def _check(spec: ModelSpec, kind: str, described: Sequence[TensorSpec], found: Mapping[str, Found]) -> None:
    for tensor in described:
        actual = found.get(tensor.name)
        if actual is None:
            raise ModelRefused(f"model {spec.model!r} has no {kind} {tensor.name!r}; it has: {sorted(found)}")
        if actual.datatype != tensor.datatype:
            raise ModelRefused(
                f"{kind} {tensor.name!r} of model {spec.model!r} is {actual.datatype} in its file and {tensor.datatype} in the"
                " manifest"
            )
        expected = ((-1,) if spec.max_batch_size > 0 else ()) + tensor.shape
        if actual.shape is not None and not _fits(expected, actual.shape, spec.max_batch_size):
            raise ModelRefused(
                f"{kind} {tensor.name!r} of model {spec.model!r} is {list(actual.shape)} in its file and {list(expected)}"
                " in the manifest (batch dimension included)"
            )


def _fits(expected: Sequence[int], actual: Sequence[int | str], max_batch_size: int) -> bool:
    """What is variable in the file takes any size; a fixed size is taken by itself alone."""
    if len(expected) != len(actual):
        return False
    return all(
        not isinstance(have, int) or have in (-1, want) or (index == 0 and have == max_batch_size == 1)
        for index, (want, have) in enumerate(zip(expected, actual, strict=True))
    )


def fits(tensor: TensorSpec, shape: Sequence[int], *, batched: bool) -> bool:
    """Whether an array of this shape is what the manifest describes."""
    expected = ((-1,) if batched else ()) + tensor.shape
    return len(expected) == len(shape) and all(want in (-1, have) for want, have in zip(expected, shape, strict=True))


def model_file(spec: ModelSpec, folder: Path, default: str) -> Path:
    """The file that parameter `file` names, else the engine's usual one. Raises ModelRefused."""
    name = spec.parameters.get("file", default)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelRefused(f"parameter 'file' of model {spec.model!r} leads out of the model's folder: {name!r}")
    file = folder / name
    if not file.is_file():
        raise ModelRefused(
            f"model {spec.model!r} has no file {name!r}; publish it with the model, or name it in parameter 'file'"
        )
    return file


def cuda_device(spec: ModelSpec) -> int | None:
    """Parameter `device`: None for cpu, which is the default, else the CUDA device's number. Raises ModelRefused."""
    device = spec.parameters.get("device", "cpu")
    kind, colon, number = device.partition(":")
    if kind == "cpu" and not colon:
        return None
    if kind == "cuda" and (not colon or number.isdecimal()):
        return int(number or 0)
    raise ModelRefused(f"parameter 'device' of model {spec.model!r} is {device!r}; allowed: cpu, cuda, cuda:<number>")


def threads(spec: ModelSpec, name: str, default: int) -> int:
    """A parameter that is a number of threads. Raises ModelRefused."""
    return number(spec, name, default, least=1, most=_MAX_THREADS)


def number(spec: ModelSpec, name: str, default: int, *, least: int, most: int) -> int:
    """A parameter that is a whole number. Raises ModelRefused."""
    text = spec.parameters.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and least <= int(text) <= most):
        raise ModelRefused(
            f"parameter {name!r} of model {spec.model!r} is {text!r}; a number from {least} to {most} is expected"
        )
    return int(text)


def seconds(spec: ModelSpec, name: str, default_s: float, *, most_s: float) -> float:
    """A parameter that is a time in seconds, above 0. Raises ModelRefused."""
    text = spec.parameters.get(name, "")
    if not text:
        return default_s
    try:
        value_s = float(text)
    except ValueError:
        value_s = 0.0
    if not 0 < value_s <= most_s:  # NaN is neither
        raise ModelRefused(
            f"parameter {name!r} of model {spec.model!r} is {text!r}; seconds above 0 and up to {most_s:g} are expected"
        )
    return value_s


def choice(spec: ModelSpec, name: str, default: str, allowed: Collection[str]) -> str:
    """A parameter that is one of a few words. Raises ModelRefused."""
    text = spec.parameters.get(name, "") or default
    if text not in allowed:
        raise ModelRefused(f"parameter {name!r} of model {spec.model!r} is {text!r}; allowed: {', '.join(sorted(allowed))}")
    return text


def first_line(error: BaseException) -> str:
    """What a library says, as one line that fits into a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
