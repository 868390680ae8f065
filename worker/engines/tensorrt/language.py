"""Language models compiled for TensorRT: a folder of ONNX Runtime GenAI's builder with a plan in place of its graph.

Owns what such a plan looks like, when it is made and when it is opened. How it is decoded is `decoder.py`'s, how text
is made of tokens `worker/engines/llm/engine.py`'s. Making one needs no GPU.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.ids import Digest, ModelName, ModelVersion
from worker.cuda.driver import Device, Driver
from worker.engine import EngineUnavailable
from worker.engines.described import first_line, model_file
from worker.engines.llm.engine import Limits, LlmEngine, open_over
from worker.engines.llm.genai_folder import FILE, GenaiFolder, read_genai_folder
from worker.engines.tensorrt.build import BuildOptions, BuildRefused, Built, OnProgress, build_plan, no_progress
from worker.engines.tensorrt.cache_in_place import LENGTHS, rewrite
from worker.engines.tensorrt.decoder import TensorRtDecoder, check_context, check_language_plan
from worker.engines.tensorrt.engine import PLAN, Settings, machine_for, open_checked, read_settings
from worker.engines.tensorrt.plan import ShapeRange
from worker.engines.tensorrt.profiles import Ranges
from worker.engines.tensorrt.runtime import TensorRt
from worker.types import ModelSpec, Task

_GRAIN_TOKENS = 64
"""The cache holds a multiple of it, so that every row of it is aligned."""


@dataclass(frozen=True, slots=True)
class LanguageOptions:
    sequences: int = 8
    """Generations side by side."""
    context_length: int = 0
    """Tokens of one sequence; 0 = the model's own."""
    part_tokens: int = 128
    """Of a prompt, in one execution."""


def is_language_folder(path: Path) -> bool:
    return (path / FILE).is_file()


def build_language_plan(
    tensorrt: TensorRt,
    folder: Path,
    name: str,
    options: BuildOptions,
    language: LanguageOptions,
    on_progress: OnProgress = no_progress,
) -> tuple[Built, GenaiFolder]:
    """Raises what `build_plan` raises, AttentionRefused, ModelRefused."""
    described = read_genai_folder(_named(name), folder)
    context_length = language.context_length or described.context_length
    if not 1 <= context_length <= described.context_length:
        raise BuildRefused(f"context length {context_length} is asked for; the model has {described.context_length}")
    if options.precision != "fp32" or options.profiles or options.max_batch_size:
        raise BuildRefused(
            "a language model's precision is that of its export (onnxruntime_genai.models.builder -p fp16 -e NvTensorRtRtx),"
            " and its profiles follow from --sequences and --context-length"
        )
    capacity = -(-context_length // _GRAIN_TOKENS) * _GRAIN_TOKENS
    with tempfile.TemporaryDirectory(prefix="penstock-build-") as scratch:
        graph = Path(scratch) / "model.onnx"
        _rewrite_file(folder / described.graph.file, graph, described, capacity)
        asked = replace(options, profiles=_profiles(described, capacity, language))
        return replace(build_plan(tensorrt, graph, asked, on_progress), max_batch_size=0), described


def _named(name: str) -> ModelSpec:
    """As much of a spec as sentences about the folder need."""
    return ModelSpec(ModelName(name), ModelVersion("1"), Digest(""), "tensorrt", Task.CHAT, 0, (), ())


def open_tensorrt_language(spec: ModelSpec, folder: Path) -> LlmEngine:
    """Raises EngineUnavailable naming what is missing, ModelRefused."""
    try:
        genai = importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise EngineUnavailable("text from TensorRT needs the package onnxruntime-genai, for its tokenizer") from error
    settings = read_settings(spec)
    plan = model_file(spec, folder, PLAN)
    tensorrt, driver, device = machine_for(spec, settings)
    return assemble_language(spec, folder, plan.read_bytes(), genai, tensorrt, driver, device, settings)


def assemble_language(
    spec: ModelSpec,
    folder: Path,
    plan_bytes: bytes,
    genai: Any,
    tensorrt: TensorRt,
    driver: Driver,
    device: Device,
    settings: Settings,
) -> LlmEngine:
    """The engine over this runtime and this driver. Raises ModelRefused, DeviceMemoryFull."""

    def decoder_of(described: GenaiFolder, limits: Limits) -> TensorRtDecoder:
        opened = open_checked(spec, plan_bytes, tensorrt, driver, device, settings)
        outputs = [tensor.name for tensor in opened.plan.outputs]
        aliases = {name: opened.engine.get_aliased_input_tensor(name) for name in outputs}
        check_language_plan(spec.model, opened.plan, described.graph, aliases)
        check_context(spec.model, opened.plan, described.graph, limits.context_length)
        return TensorRtDecoder(opened.plan, described.graph, opened.make_execution, driver, device.index, opened.contexts.close)

    return open_over(spec, folder, genai, decoder_of)


def _rewrite_file(source: Path, target: Path, described: GenaiFolder, capacity: int) -> None:
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        raise EngineUnavailable("building a language model needs the package onnx: pip install 'penstock[tensorrt]'") from error
    try:
        model = onnx.load(str(source))
    except Exception as error:
        raise BuildRefused(f"{source} cannot be read as ONNX: {first_line(error)}") from error
    rewrite(onnx, model, described.graph, capacity)
    onnx.save_model(model, str(target), save_as_external_data=True, location=f"{target.name}.weights")


def _profiles(described: GenaiFolder, capacity: int, language: LanguageOptions) -> tuple[Ranges, ...]:
    """A token for each of up to so many rows; a part of one row's prompt."""
    part = min(language.part_tokens, capacity)
    return (
        _ranges(described, capacity, (1, language.sequences), (1, 1)),
        _ranges(described, capacity, (1, 1), (1, part)),
    )


def _ranges(described: GenaiFolder, capacity: int, rows: tuple[int, int], tokens: tuple[int, int]) -> Ranges:
    graph = described.graph
    fewest, most = rows
    state = (graph.heads, capacity, graph.head_size)
    ranges = {
        graph.input_ids: ShapeRange((fewest, tokens[0]), (most, tokens[1]), (most, tokens[1])),
        LENGTHS: ShapeRange((fewest,), (most,), (most,)),
    }
    past = ShapeRange((fewest, *state), (most, *state), (most, *state))
    for layer in range(graph.layers):
        ranges |= {graph.past_key % layer: past, graph.past_value % layer: past}
    return ranges
