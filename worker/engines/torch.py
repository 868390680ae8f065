"""PyTorch: programs that torch.export made, on the CPU or on one CUDA device.

Owns the loaded program and the translation between KServe's datatypes and torch's. Inputs go by the names of the exported
module's arguments. Outputs go by their keys where it returns a dictionary, and in the manifest's order where it returns a
tensor or several: torch has no names for those. Never falls back from the device that was asked for. Parameters of a manifest
it reads: `device` (cpu, cuda, cuda:<n>), `file` (model.pt2), `intra_op_threads`. Torch has one pool of threads for the whole
process: the number is set for all its models, and the largest that any of them asked for holds.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.engines.described import (
    Found,
    check_tensors,
    cuda_device,
    engine_inputs,
    engine_outputs,
    first_line,
    model_file,
    threads,
)
from worker.engines.torch_archive import NotData, check_archive
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.engine.torch")

_DATATYPES = MappingProxyType(
    {
        "bool": "BOOL",
        "uint8": "UINT8",
        "uint16": "UINT16",
        "uint32": "UINT32",
        "uint64": "UINT64",
        "int8": "INT8",
        "int16": "INT16",
        "int32": "INT32",
        "int64": "INT64",
        "float16": "FP16",
        "float32": "FP32",
        "float64": "FP64",
        "bfloat16": "BF16",
    }
)
_MANY_CORES = 8
_threads_lock = threading.Lock()
_threads_asked = 0
"""The process's, as torch's own number is; 0 = no model was opened yet."""

Call = Callable[[Sequence[Any]], Sequence[Any]]


class TorchEngine:
    """One program. It keeps nothing between executions, so that several threads may run it at once."""

    utf8_bytes = False

    def __init__(self, spec: ModelSpec, torch: Any, call: Call, names: Sequence[str], written: frozenset[str]) -> None:
        self.slots = spec.instances
        self._torch = torch
        self._call: Call | None = call
        self._names = tuple(names)
        self._written = written
        self._bfloats = frozenset(tensor.name for tensor in engine_inputs(spec) if tensor.datatype == "BF16")
        device = cuda_device(spec)
        self._device = None if device is None else f"cuda:{device}"

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution. Raises InvalidArgument where the program's own guards refuse a size."""
        torch, call = self._torch, self._call
        if call is None:
            raise EngineFailed("the model is closed")
        try:
            with torch.inference_mode():
                return [self._array(tensor) for tensor in call([self._tensor(name, inputs[name]) for name in self._names])]
        except KeyError as error:
            raise InvalidArgument(
                f"input {error.args[0]!r} is missing, and a program of torch.export takes all of its own"
            ) from error
        except Exception as error:
            raise _mapped(error, torch) from error

    def close(self) -> None:
        self._call = None

    def _tensor(self, name: str, array: Array) -> Any:
        """The array's own memory where it is the CPU's; a copy where the program writes into it."""
        tensor = self._torch.from_numpy(np.asarray(array, order="C"))
        if name in self._bfloats:
            tensor = tensor.view(self._torch.bfloat16)
        if self._device is not None:
            return tensor.to(self._device)
        return tensor.clone() if name in self._written else tensor

    def _array(self, tensor: Any) -> Array:
        if tensor.dtype == self._torch.bfloat16:
            tensor = tensor.view(self._torch.uint16)
        array: Array = tensor.cpu().numpy()
        return array


def open_torch(spec: ModelSpec, folder: Path) -> TorchEngine:
    """Load the program and check it against the spec. Raises EngineUnavailable, ModelRefused."""
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailable("engine 'torch' needs the package torch: pip install 'penstock[torch]'") from error
    device = cuda_device(spec)
    if device is not None and not (torch.cuda.is_available() and device < torch.cuda.device_count()):
        raise EngineUnavailable(
            f"model {spec.model!r} asks for device 'cuda:{device}', and torch sees {torch.cuda.device_count()} CUDA devices;"
            " check the driver, and that the torch installed here is built for CUDA"
        )
    file = model_file(spec, folder, "model.pt2")
    _set_threads(torch, spec)
    try:
        check_archive(file, torch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(file)
            if _writes(program):
                program = program.run_decompositions({})
            torch.from_numpy(np.frombuffer(bytes(1), np.uint8))  # warns once a process that requests' bytes are read-only
    except NotData as error:
        raise ModelRefused(f"the program of model {spec.model!r} is refused: {error}") from error
    except Exception as error:
        raise ModelRefused(f"torch cannot load model {spec.model!r}: {first_line(error)}") from error
    return _engine(spec, torch, program, device)


def _engine(spec: ModelSpec, torch: Any, program: Any, device: int | None) -> TorchEngine:
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        raise ModelRefused(
            f"model {spec.model!r} changes its buffers {sorted(signature.buffers_to_mutate.values())} as it runs: one request"
            " would act on the next; export it in eval() mode and without such state"
        )
    nodes = {node.name: node for node in program.graph.nodes}
    placeholders = [str(name) for name in signature.user_inputs]
    names = _argument_names(program, placeholders)
    outputs = [nodes.get(name) for name in map(str, signature.user_outputs)]
    keys = _output_keys(spec, program, len(outputs))
    ranges = program.range_constraints
    check_tensors(
        spec,
        [_found(name, nodes.get(node), ranges, spec) for name, node in zip(names, placeholders, strict=True)],
        [_found(key, node, ranges, spec) for key, node in zip(keys, outputs, strict=True)],
    )
    module = program.module()
    # Its hook checks the same sizes as the guards, in Python: measured at 120 µs a call.
    module.validate_inputs = False
    if device is not None:
        module = module.to(f"cuda:{device}")
    written = frozenset(
        name for name, node in zip(names, placeholders, strict=True) if node in signature.user_inputs_to_mutate.values()
    )
    order = [keys.index(output.name) for output in engine_outputs(spec)]
    return TorchEngine(spec, torch, _caller(torch, module, program, order), names, written)


def _writes(program: Any) -> bool:
    """Whether an operator writes into what it is given: only without such ones does the signature tell what a run changes.

    An exported program keeps in-place operators, also those on inputs and buffers (seen with torch 2.13).
    """
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    return any(_node_writes(node) for graph in graphs for node in graph.nodes)


def _node_writes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)
    # Normalisation that learns changes its statistics, and its schema does not say so.
    return bool(schema.is_mutable) or any(given.get(name) is True for name in ("training", "use_input_stats"))


def _argument_names(program: Any, placeholders: Sequence[str]) -> Sequence[str]:
    """The exported module's own argument names; placeholders' differ from those where Python has the word already."""
    names = program.module_call_graph[0].signature.forward_arg_names
    return tuple(names) if names and len(names) == len(placeholders) else tuple(placeholders)


def _output_keys(spec: ModelSpec, program: Any, count: int) -> list[str]:
    """A name for every output: the dictionary's keys, or the manifest's names in order."""
    tree = program.call_spec.out_spec
    named = tree.type is dict
    keys = [str(key) for key in tree.context] if named else [output.name for output in engine_outputs(spec)]
    if len(keys) != count:
        raise ModelRefused(
            f"model {spec.model!r} gives {count} tensors, and {len(keys)} have names: return a flat dictionary of tensors, or"
            " describe every output in order"
        )
    return keys


def _found(name: str, node: Any, ranges: Mapping[Any, Any], spec: ModelSpec) -> Found:
    value = None if node is None else node.meta.get("val")
    if value is None or not hasattr(value, "dtype"):
        raise ModelRefused(f"{name!r} of model {spec.model!r} is no tensor in its program; tensors alone can be asked for")
    kind = str(value.dtype).removeprefix("torch.")
    shape = tuple(
        size if isinstance(size, int) else _symbol(name, index, size, ranges, spec) for index, size in enumerate(value.shape)
    )
    return Found(name, _DATATYPES.get(kind, kind), shape)


def _symbol(name: str, index: int, size: Any, ranges: Mapping[Any, Any], spec: ModelSpec) -> int:
    """A variable size. Raises ModelRefused where it is the batch's and does not reach from one row to the largest batch."""
    limits = ranges.get(size.node.expr)
    if index == 0 and spec.max_batch_size > 0 and limits is not None and not _reaches(limits, spec.max_batch_size):
        raise ModelRefused(
            f"{name!r} of model {spec.model!r} takes {limits.lower} to {limits.upper} rows, and its manifest says"
            f" max_batch_size = {spec.max_batch_size}"
        )
    return -1


def _reaches(limits: Any, rows: int) -> bool:
    return bool(limits.lower <= 1) and bool(limits.upper >= rows)


def _caller(torch: Any, module: Any, program: Any, order: Sequence[int]) -> Call:
    """Arguments in the order of the signature to outputs in the order of the spec."""
    flatten, unflatten = torch.utils._pytree.tree_leaves, torch.utils._pytree.tree_unflatten
    tree = program.call_spec.in_spec
    plain = not tree.child(1).num_children and all(child.is_leaf() for child in tree.child(0).children())

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        if plain:
            given = module(*tensors)
        else:
            positional, named = unflatten(list(tensors), tree)
            given = module(*positional, **named)
        leaves = (given,) if isinstance(given, torch.Tensor) else flatten(given)
        return [leaves[index] for index in order]

    return call


def _set_threads(torch: Any, spec: ModelSpec) -> None:
    """One, and a quarter of the cores on larger machines, unless a model asks for more."""
    global _threads_asked
    cores = os.cpu_count() or 1
    asked = threads(spec, "intra_op_threads", cores // 4 if cores >= _MANY_CORES else 1)
    with _threads_lock:
        if asked > _threads_asked:
            _threads_asked = asked
            torch.set_num_threads(asked)


def _mapped(error: Exception, torch: Any) -> PenstockError:
    if isinstance(error, AssertionError):  # what an exported program's guards raise
        return InvalidArgument(f"the model refuses these inputs: {first_line(error)}")
    if isinstance(error, torch.OutOfMemoryError):
        _log.warning("out_of_memory", reason=first_line(error))
        return EngineFailed("the device has too little memory left for this request; send fewer rows, or retry later")
    _log.error("execution_failed", exc_info=error)
    return EngineFailed("torch failed on this request; the worker's log has the reason")
