"""What an ONNX file takes and gives, asked of ONNX Runtime in a process of its own: a hostile file ends that, and nothing else.

Decides what of an unfinished description the file fills in, as Triton's auto-complete does. Never runs a model. The child gets
a path and writes one JSON object; what it writes is believed no more than the file is.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from penstock.registry.v1 import models_pb2

from runtime.errors import Code, PenstockError

DEFAULT_MAX_BATCH_SIZE = 4
"""Of a model that takes batches and whose configuration does not say how large: Triton's default-max-batch-size."""

_TIMEOUT_S = 180.0
_LOOK_UP_S = 0.2
"""How often it is asked whether anybody still waits."""

_MAX_ANSWER_BYTES = 1 << 20
_MAX_TENSORS = 1024
_MAX_RANK = 64
_MAX_NAME_CHARACTERS = 512
_DATATYPES = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(string)": "BYTES",
        "tensor(bfloat16)": "BF16",
    }
)


def _always_wanted() -> None:
    return


class OnnxUnreadable(PenstockError, code=Code.INVALID_ARGUMENT, reason="ONNX_UNREADABLE"):
    """ONNX Runtime makes nothing of this file."""


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """`datatype` is KServe's name, or ONNX's for one that has none; `shape` has the batch dimension, -1 = any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OnnxTensors:
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]

    @property
    def batched(self) -> bool:
        """Whether every tensor's first size is left open: Triton's sign of a model that takes batches."""
        tensors = (*self.inputs, *self.outputs)
        return bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors)


def read_onnx(
    file: Path, timeout_s: float = _TIMEOUT_S, *, alone: bool = False, check_wanted: Callable[[], None] = _always_wanted
) -> OnnxTensors:
    """Blocking; call it in a thread. Raises OnnxUnreadable, and what `check_wanted` raises to have it given up.

    `alone`: weights in files beside it are not looked for.
    """
    command = [sys.executable, "-B", "-P", "-s", "-m", "runtime.onnx_io", str(file.absolute()), *(["alone"] if alone else [])]
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as empty:
        reader = subprocess.Popen(  # noqa: S603  # this interpreter, and this module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env=_environment(),
        )
        with reader:
            try:
                raw = _awaited(file, reader, timeout_s, check_wanted)
            finally:
                reader.kill()
    if reader.returncode < 0:
        raise OnnxUnreadable(f"{file}: ONNX Runtime crashed on it (signal {-reader.returncode}); it is damaged or hostile")
    answer = _answer(file, raw)
    if "refused" in answer:
        raise OnnxUnreadable(f"{file}: ONNX Runtime cannot read it: {str(answer['refused'])[:300]}")
    return OnnxTensors(_tensors(file, answer.get("inputs")), _tensors(file, answer.get("outputs")))


def completed(
    source: str, manifest: models_pb2.Manifest, found: OnnxTensors, *, max_batch_size: int = 0
) -> models_pb2.Manifest:
    """The manifest, with the inputs and outputs that it lacks, and the batch size where it has no tensors at all.

    `max_batch_size` is for a model that takes batches; 0: the default. Raises OnnxUnreadable for tensors of a kind that
    requests cannot carry, and where the file fixes the size of what the manifest calls a batch.
    """
    whole = models_pb2.Manifest()
    whole.CopyFrom(manifest)
    if not manifest.inputs and not manifest.outputs and not manifest.max_batch_size and found.batched:
        whole.max_batch_size = max_batch_size or DEFAULT_MAX_BATCH_SIZE
    made = {control.input for control in manifest.sequence_batching.controls}
    kept = {state.input for state in manifest.sequence_batching.states}
    given = {state.output for state in manifest.sequence_batching.states}
    if not manifest.inputs:
        whole.inputs.extend(_spec(source, "input", each, whole) for each in found.inputs if each.name not in made | kept)
    if not manifest.outputs:
        whole.outputs.extend(_spec(source, "output", each, whole) for each in found.outputs if each.name not in given)
    return whole


def main(words: Sequence[str]) -> int:
    """In the child: the tensors of the file named, as JSON."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # As bytes and in a folder without files it has nothing to refer to.
        model = Path(words[0]).read_bytes() if "alone" in words[1:] else words[0]
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        told: dict[str, Any] = {"inputs": _told(session.get_inputs()), "outputs": _told(session.get_outputs())}
    except Exception as error:  # its own classes live in a compiled module and derive from Exception only
        told = {"refused": (str(error).strip() or type(error).__name__).splitlines()[0]}
    sys.stdout.write(json.dumps(told))
    return 0


def _awaited(file: Path, reader: subprocess.Popen[bytes], timeout_s: float, check_wanted: Callable[[], None]) -> bytes:
    """What the child wrote, once it has ended."""
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            return reader.communicate(timeout=min(_LOOK_UP_S, timeout_s))[0]
        except subprocess.TimeoutExpired as error:
            check_wanted()
            if time.monotonic() >= end_s:
                raise OnnxUnreadable(f"{file}: ONNX Runtime did not read it within {timeout_s:g} s") from error


def _told(tensors: Sequence[Any]) -> list[list[Any]]:
    return [
        [each.name, each.type, [size if isinstance(size, int) and size >= 0 else -1 for size in each.shape]] for each in tensors
    ]


def _environment() -> dict[str, str]:
    """The child finds this package as this process does."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}


def _answer(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw) if len(raw) <= _MAX_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise OnnxUnreadable(f"{file}: the process that was to read it did not answer; is the package onnxruntime installed?")
    return answer


def _tensors(file: Path, told: Any) -> tuple[OnnxTensor, ...]:
    if not isinstance(told, list) or len(told) > _MAX_TENSORS:
        raise OnnxUnreadable(f"{file}: it has more than {_MAX_TENSORS} inputs or outputs, or none that can be told")
    return tuple(_tensor(file, each) for each in told)


def _tensor(file: Path, told: Any) -> OnnxTensor:
    match told:
        case [str(name), str(kind), list(sizes)] if name and len(name) <= _MAX_NAME_CHARACTERS and len(sizes) <= _MAX_RANK:
            if all(type(size) is int and -1 <= size < 2**63 for size in sizes):
                return OnnxTensor(name, _DATATYPES.get(kind, kind[:80]), tuple(sizes))
    raise OnnxUnreadable(f"{file}: it has a tensor that cannot be described: {str(told)[:120]}")


def _spec(source: str, what: str, tensor: OnnxTensor, manifest: models_pb2.Manifest) -> models_pb2.TensorSpec:
    if tensor.datatype not in _DATATYPES.values():
        raise OnnxUnreadable(f"{source}: {what} {tensor.name!r} is a {tensor.datatype}, which requests cannot carry")
    shape = tensor.shape
    if manifest.max_batch_size:
        if not shape or (shape[0] != -1 and not shape[0] == manifest.max_batch_size == 1):
            raise OnnxUnreadable(
                f"{source}: max_batch_size is {manifest.max_batch_size}, and {what} {tensor.name!r} is {list(shape)} in the"
                " file, whose first size is no batch; set max_batch_size to 0, or export the model with a batch that varies"
            )
        shape = shape[1:]
    return models_pb2.TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=shape)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
