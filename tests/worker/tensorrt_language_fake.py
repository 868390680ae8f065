"""A language model's plan for the TensorRT that is not there: ONNX Runtime computes its graph, rewritten as for a real one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxruntime_genai

from tests.worker import tensorrt_fake as fake
from worker.cuda.fake import DEFAULT_DEVICE, FakeDriver
from worker.engines.llm.engine import LlmEngine
from worker.engines.llm.genai_folder import GenaiFolder, Graph, read_genai_folder
from worker.engines.tensorrt.cache_in_place import LENGTHS, rewrite
from worker.engines.tensorrt.engine import Settings
from worker.engines.tensorrt.language import assemble_language
from worker.engines.tensorrt.runtime import use_tensorrt
from worker.types import ModelSpec

_NUMBERS = itertools.count()
_KINDS = {1: fake.DataType.FLOAT, 10: fake.DataType.HALF}


def pairs(graph: Graph) -> dict[str, str]:
    """Past's name → present's."""
    names = ((graph.past_key, graph.present_key), (graph.past_value, graph.present_value))
    return {past % layer: present % layer for past, present in names for layer in range(graph.layers)}


def language_plan(spec: ModelSpec, folder: Path, *, slots: int, part: int, capacity: int, in_place: bool = True) -> bytes:
    """What `build_language_plan` makes of the folder, for the fake."""
    described = read_genai_folder(spec, folder)
    graph = described.graph
    operation = f"language {next(_NUMBERS)}"
    model = rewrite(onnx, onnx.load(str(folder / graph.file)), graph, capacity)
    fake.OPERATIONS[operation] = _operation(described, model)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    state = (-1, graph.heads, capacity, graph.head_size)
    takes, gives = fake.TensorIOMode.INPUT, fake.TensorIOMode.OUTPUT
    tensors = [
        fake.Tensor(graph.input_ids, takes, fake.DataType.INT64, (-1, -1)),
        fake.Tensor(LENGTHS, takes, fake.DataType.INT64, (-1,)),
        *(fake.Tensor(past, takes, _KINDS[types[past]], state) for past in pairs(graph)),
        fake.Tensor(graph.logits, gives, _KINDS[types[graph.logits]], (-1, -1, described.vocabulary)),
        *(fake.Tensor(present, gives, _KINDS[types[present]], state) for present in pairs(graph).values()),
    ]

    def ranges(rows: int, tokens: int) -> dict[str, list[list[int]]]:
        found = {graph.input_ids: [[1, 1], [rows, tokens], [rows, tokens]], LENGTHS: [[1], [rows], [rows]]}
        return found | {past: [[1, *state[1:]], [rows, *state[1:]], [rows, *state[1:]]] for past in pairs(graph)}

    aliases = {present: past for past, present in pairs(graph).items()} if in_place else {}
    return fake.plan_bytes(operation, tensors, [ranges(slots, 1), ranges(1, part)], aliases=aliases)


def open_language(driver: FakeDriver, spec: ModelSpec, folder: Path, plan: bytes) -> LlmEngine:
    module = use_tensorrt(fake.FakeTensorRt(driver, rtx=True), "tensorrt_rtx")
    return assemble_language(spec, folder, plan, onnxruntime_genai, module, driver, DEFAULT_DEVICE, Settings())


def _operation(described: GenaiFolder, model: Any) -> fake.Operation:
    graph = described.graph
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def shapes(given: fake.Shapes) -> fake.Shapes:
        found = {present: given[past] for past, present in pairs(graph).items()}
        return found | {graph.logits: (*given[graph.input_ids], described.vocabulary)}

    return fake.Operation(shapes, lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True)))
