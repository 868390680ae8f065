"""ONNX Runtime GenAI behind the engine Protocol, with a model whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument
from tests.worker.markov import CONTEXT_LENGTH, language_spec, markov
from worker.engine import EngineUnavailable, Finish, Message, ModelRefused, Piece, Sampling, TextRequest
from worker.engines.llm import LlmEngine, open_llm


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LlmEngine:
    return open_llm(language_spec(), markov(tmp_path_factory.mktemp("alphabet")))


def pieces(engine: LlmEngine, request: TextRequest) -> list[Piece]:
    generation = engine.begin(request)
    made: list[Piece] = []
    while not made or made[-1].finish is None:
        piece = generation.step()
        if piece is not None:
            made.append(piece)
    return made


def text(made: list[Piece]) -> str:
    return "".join(piece.text for piece in made)


def test_token_by_token_to_the_end(engine: LlmEngine) -> None:
    made = pieces(engine, TextRequest("mnop"))
    assert [piece.text for piece in made] == [*"qrstuvwxyz", ""]
    assert all(len(piece.token_ids) == 1 for piece in made[:-1])
    assert made[-1] == Piece("", (), Finish.STOP, prompt_tokens=4, completion_tokens=10)


def test_max_tokens(engine: LlmEngine) -> None:
    made = pieces(engine, TextRequest("a", max_tokens=3))
    assert [piece.text for piece in made] == ["b", "c", "d"]
    assert (made[-1].finish, made[-1].completion_tokens) == (Finish.LENGTH, 3)


def test_a_conversation_goes_through_the_models_template(engine: LlmEngine) -> None:
    made = pieces(engine, TextRequest((Message("user", "uv"), Message("user", "wx"))))
    assert text(made) == "yz"
    assert made[-1].prompt_tokens == 4


def test_stop_strings(engine: LlmEngine) -> None:
    made = pieces(engine, TextRequest("a", stop=("ef", "xyz")))
    assert text(made) == "bcd"
    assert made[-1].finish is Finish.STOP
    assert made[-1].completion_tokens == 5


def test_resuming_goes_on_after_the_tokens_given(engine: LlmEngine) -> None:
    whole = pieces(engine, TextRequest("a", max_tokens=6))
    given = tuple(token for piece in whole[:2] for token in piece.token_ids)
    rest = pieces(engine, TextRequest("a", max_tokens=6, resume_token_ids=given))
    assert text(rest) == "defg"
    assert (rest[-1].prompt_tokens, rest[-1].completion_tokens, rest[-1].finish) == (1, 6, Finish.LENGTH)


def test_resuming_after_everything_was_given_ends_at_once(engine: LlmEngine) -> None:
    (only,) = pieces(engine, TextRequest("a", max_tokens=2, resume_token_ids=(5, 6)))
    assert only == Piece("", (), Finish.LENGTH, 1, 2)


def test_sampling_follows_its_seed(engine: LlmEngine) -> None:
    def digits(seed: int) -> str:
        return text(pieces(engine, TextRequest("0", Sampling(temperature=1.0, seed=seed), max_tokens=40)))

    assert digits(1) == digits(1)
    assert digits(1) != digits(2)
    assert digits(2**40 + 1)


def test_temperature_zero_is_greedy_whatever_else_is_asked(engine: LlmEngine) -> None:
    request = TextRequest("0", Sampling(temperature=0.0, top_k=10), max_tokens=20)
    assert len(set(text(pieces(engine, request)))) == 1


def test_top_k_and_top_p_bound_the_choice(engine: LlmEngine) -> None:
    one = TextRequest("0", Sampling(temperature=1.0, top_k=1, seed=3), max_tokens=20)
    assert len(set(text(pieces(engine, one)))) == 1
    narrow = TextRequest("0", Sampling(top_p=0.25, seed=3), max_tokens=60)
    assert len(set(text(pieces(engine, narrow)))) <= 3


def test_generations_by_turns_do_not_mix(engine: LlmEngine) -> None:
    first, second = engine.begin(TextRequest("a")), engine.begin(TextRequest("n"))
    mixed = [(first.step(), second.step()) for _ in range(4)]
    assert ["".join(piece.text for piece in column if piece) for column in zip(*mixed, strict=True)] == ["bcde", "opqr"]
    first.close()
    first.close()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (TextRequest("a" * 600), f"the prompt has 600 tokens; model 'alphabet' has a context of {CONTEXT_LENGTH}"),
        (TextRequest("aaa", max_tokens=510), "3 tokens and max_tokens is 510, 513 together"),
        (TextRequest(""), "the prompt is empty"),
        (TextRequest(()), "no messages"),
        (TextRequest("a", stop=("",)), "none of them empty"),
        (TextRequest("a", stop=("x",) * 17), "17 stop strings"),
        (TextRequest("a", Sampling(temperature=-1.0)), "temperature is -1.0"),
        (TextRequest("a", Sampling(temperature=float("nan"))), "temperature is nan"),
        (TextRequest("a", Sampling(top_p=0.0)), "top_p is 0.0"),
        (TextRequest("a", resume_token_ids=(9999,)), "outside of this model's"),
    ],
)
def test_what_exceeds_the_model_is_refused_before_it_runs(engine: LlmEngine, request_: TextRequest, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        engine.begin(request_)
    assert sentence in refused.value.message


def test_the_manifest_may_lower_the_limits(tmp_path: Path) -> None:
    markov(tmp_path)
    lowered = open_llm(language_spec(parameters={"context_length": "10", "max_tokens_default": "4"}), tmp_path)
    assert text(pieces(lowered, TextRequest("a"))) == "bcde"
    assert text(pieces(lowered, TextRequest("abcdefgh"))) == "ij"
    with pytest.raises(InvalidArgument, match="a context of 10"):
        lowered.begin(TextRequest("a" * 10))
    with pytest.raises(ModelRefused, match="'context_length' of model 'alphabet' is 513; its own is 512"):
        open_llm(language_spec(parameters={"context_length": "513"}), tmp_path)


def test_files_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="no readable genai_config"):
        open_llm(language_spec(), tmp_path)
    markov(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match="cannot load model 'alphabet'"):
        open_llm(language_spec(), tmp_path)


def test_a_model_without_a_template_takes_prompts_only(tmp_path: Path) -> None:
    config = markov(tmp_path) / "tokenizer_config.json"
    config.write_text(
        json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"})
    )
    engine = open_llm(language_spec(), tmp_path)
    assert text(pieces(engine, TextRequest("x"))) == "yz"
    with pytest.raises(InvalidArgument, match="no chat template"):
        engine.begin(TextRequest((Message("user", "x"),)))


def test_cuda_is_never_replaced_in_silence(tmp_path: Path) -> None:
    import onnxruntime_genai

    if onnxruntime_genai.is_cuda_available():
        pytest.skip("this ONNX Runtime GenAI has CUDA: what is tested is its absence")
    with pytest.raises(EngineUnavailable, match="install onnxruntime-genai-cuda"):
        open_llm(language_spec(parameters={"device": "cuda"}), markov(tmp_path))
