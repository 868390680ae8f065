"""Text from a TensorRT plan: the whole of it but the driver's own calls. ONNX Runtime computes what the plan would."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.worker import tensorrt_fake as fake
from tests.worker.markov import language_spec
from tests.worker.onnx_models import spec
from tests.worker.tensorrt_language_fake import language_plan, open_language, pairs
from tests.worker.tiny_llama import tiny_llama
from worker.cuda.fake import FakeDriver, Live
from worker.engine import EngineUnavailable, Generation, ModelRefused, Piece, Sampling, TextRequest
from worker.engines.llm.engine import LlmEngine, open_llm
from worker.engines.llm.genai_folder import GenaiFolder, read_genai_folder
from worker.engines.tensorrt.build import BuildOptions, BuildRefused, find_builder
from worker.engines.tensorrt.cache_in_place import LENGTHS, AttentionRefused, rewrite
from worker.engines.tensorrt.decoder import TensorRtDecoder
from worker.engines.tensorrt.language import LanguageOptions, build_language_plan, open_tensorrt_language
from worker.types import CompiledFor, ModelSpec, Task

SUMS = Path(__file__).parents[4] / "cli" / "demo" / "sums"
CAPACITY, SLOTS, PART = 128, 4, 8
NOTHING = Live(0, 0, 0, 0, 0)


def sums(**other: Any) -> ModelSpec:
    parameters = {"context_length": str(CAPACITY)} | other.pop("parameters", {})
    return spec("sums", engine="tensorrt", task=Task.COMPLETION, max_batch_size=0, parameters=parameters, **other)


@cache
def described() -> GenaiFolder:
    return read_genai_folder(sums(), SUMS)


def rewritten() -> Any:
    return rewrite(onnx, onnx.load(str(SUMS / "model.onnx")), described().graph, CAPACITY)


def names() -> dict[str, str]:
    return pairs(described().graph)


@cache
def plan(capacity: int = CAPACITY, *, in_place: bool = True) -> bytes:
    return language_plan(sums(), SUMS, slots=SLOTS, part=PART, capacity=capacity, in_place=in_place)


def opened(driver: FakeDriver, model: ModelSpec | None = None, content: bytes | None = None) -> LlmEngine:
    return open_language(driver, model or sums(), SUMS, content or plan())


def answers(engine: LlmEngine, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """All prompts at once, greedily; a further one joins at each step."""
    greedy = Sampling(temperature=0)
    waiting = [engine.begin(TextRequest(prompt, greedy, max_tokens=12)) for prompt in prompts]
    order = list(waiting)
    found: dict[int, tuple[int, ...]] = {id(each): () for each in order}
    running: list[Generation] = []
    while waiting or running:
        if waiting and len(running) < engine.slots:
            running.append(waiting.pop(0))
        for each, answer in zip(list(running), engine.step(running), strict=True):
            if answer is None:
                continue
            assert isinstance(answer, Piece), answer
            found[id(each)] += answer.token_ids
            if answer.finish is not None:
                running.remove(each)
                each.close()
    return [found[id(each)] for each in order]


PROMPTS = [f"What is {a} plus {b}?" for a, b in ((12, 34), (7, 8), (55, 44), (90, 9), (23, 23), (31, 60), (1, 2))]


def test_a_plan_answers_as_onnx_runtime_does_whoever_else_is_in_the_batch() -> None:
    driver = FakeDriver()
    engine = opened(driver)
    reference = open_llm(spec("sums", engine="llm", task=Task.COMPLETION, max_batch_size=0), SUMS)
    try:
        alone = answers(reference, PROMPTS)
        assert all(alone)
        assert answers(engine, PROMPTS) == alone
        assert answers(engine, PROMPTS[::-1]) == answers(reference, PROMPTS[::-1])
        assert engine.slots == SLOTS
    finally:
        engine.close()
        engine.close()
        reference.close()
    assert driver.live == NOTHING


def test_a_context_is_filled_to_its_end_and_the_slot_used_again() -> None:
    engine = opened(FakeDriver())
    long = " ".join(["12 plus 34"] * 100)
    greedy = Sampling(temperature=0)
    tokens = engine._tokens.encode(long)[: CAPACITY - 4]
    first = engine.begin(TextRequest("7 plus 8", greedy, max_tokens=2))
    decoder = engine._decoder
    decoder.begin(2, CAPACITY)
    for start in range(0, len(tokens), PART):
        logits = decoder.extend(2, tokens[start : start + PART])
    for _ in range(4):
        logits = decoder.step([2], [int(np.argmax(logits))])[0]
    decoder.begin(3, CAPACITY)  # a neighbour goes on while that row is full
    decoder.extend(3, tokens[:3])
    assert np.isfinite(decoder.step([3], [5])[0]).all()
    decoder.end(2)
    decoder.end(3)
    first.close()
    engine.close()


def of_something_else() -> bytes:
    tensor = fake.Tensor("x", fake.TensorIOMode.INPUT, fake.DataType.FLOAT, (2,))
    return fake.plan_bytes("copy", [tensor], [{"x": [[2], [2], [2]]}])


@pytest.mark.parametrize(
    ("content", "other", "sentence"),
    [
        (lambda: plan(in_place=False), {}, "does not write 'past_key_values.0.key' in place"),
        (lambda: plan(64), {}, "its plan's cache holds 64; set parameter 'context_length' to 64"),
        (of_something_else, {}, "a language model's are"),
        (plan, {"compiled_for": CompiledFor("tensorrt_rtx", "1.7.1", ("8.9",))}, "compute capability 8.9"),
    ],
)
def test_a_plan_that_is_no_language_model_for_this_machine_is_refused(
    content: Callable[[], bytes], other: dict[str, Any], sentence: str
) -> None:
    driver = FakeDriver()
    with pytest.raises(ModelRefused, match=sentence):
        opened(driver, sums(**other), content())
    assert driver.live == NOTHING


@pytest.mark.parametrize("kind", [{"positions": True}, {"half": True}, {"positions": True, "half": True}])
def test_graphs_with_positions_and_with_halves_are_rewritten_too(tmp_path: Path, kind: dict[str, bool]) -> None:
    folder = tiny_llama(tmp_path, **kind)
    described = language_spec()
    driver = FakeDriver()
    engine = open_language(driver, described, folder, language_plan(described, folder, slots=2, part=16, capacity=640))
    reference = open_llm(described, folder)
    assert answers(engine, PROMPTS[:3]) == answers(reference, PROMPTS[:3])
    engine.close()
    reference.close()
    assert driver.live == NOTHING


def test_the_decoder_counts_what_it_holds() -> None:
    driver = FakeDriver()
    engine = opened(driver)
    assert isinstance(engine._decoder, TensorRtDecoder)
    assert engine._decoder.device_bytes == driver.live.device_bytes > 0
    engine.close()
    assert engine._decoder.device_bytes == 0


def test_a_graph_whose_attention_is_of_another_kind_is_refused() -> None:
    graph = described().graph
    windowed = onnx.load(str(SUMS / "model.onnx"))
    node = next(node for node in windowed.graph.node if node.op_type == "GroupQueryAttention")
    next(field for field in node.attribute if field.name == "local_window_size").i = 64
    with pytest.raises(AttentionRefused, match="local_window_size 64"):
        rewrite(onnx, windowed, graph, CAPACITY)
    plain = onnx.load(str(SUMS / "model.onnx"))
    next(node for node in plain.graph.node if node.op_type == "GroupQueryAttention").op_type = "MultiHeadAttention"
    with pytest.raises(AttentionRefused, match="1 of 2 layers"):
        rewrite(onnx, plain, graph, CAPACITY)


def test_the_rewritten_graph_has_lengths_for_a_mask_and_a_cache_of_one_shape() -> None:
    model = rewritten()
    inputs = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    graph = described().graph
    assert inputs.keys() == {"input_ids", LENGTHS, *names()}
    assert inputs[LENGTHS] == ["rows"]
    assert all(inputs[past] == ["rows", graph.heads, CAPACITY, graph.head_size] for past in names())
    assert not [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]


def built_on_this_machine(folder: Path, **language: Any) -> Any:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'penstock[tensorrt]'")
    options = BuildOptions(targets=("sm80",))
    return build_language_plan(find_builder(), folder, "sums", options, LanguageOptions(**language))


def test_a_language_model_becomes_a_plan_without_a_gpu() -> None:
    built, _ = built_on_this_machine(SUMS, sequences=4, context_length=100, part_tokens=16)
    assert {tensor.name for tensor in built.inputs} == {"input_ids", LENGTHS, *names()}
    step, part = built.profiles
    assert step["input_ids"].maximum == (4, 1)
    assert part["input_ids"].maximum == (1, 16)
    assert step["past_key_values.0.key"].maximum[2] == 128
    assert built.max_batch_size == 0


def test_a_longer_context_than_the_models_is_refused() -> None:
    with pytest.raises(BuildRefused, match="the model has 512"):
        built_on_this_machine(SUMS, context_length=4096)


def test_a_machine_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    import sys

    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    for file in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SUMS / file, tmp_path / file)
    (tmp_path / "model.plan").write_bytes(b"plan")
    with pytest.raises(EngineUnavailable, match="needs the package"):
        open_tensorrt_language(sums(), tmp_path)
