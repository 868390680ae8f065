"""One body for every text engine: answers, bounds, company, resumption, refusals, places.

The engines: a Llama of random parameters on each decoder that runs it, the alphabet on GenAI's, and the alphabet as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, PenstockError
from tests.worker.markov import CONTEXT_LENGTH, language_spec, markov, table
from tests.worker.stepping import finish, pieces, text, together, token_ids
from tests.worker.table_decoder import TableDecoder
from tests.worker.tensorrt_language_fake import language_plan, open_language
from tests.worker.tiny_llama import CONTEXT_LENGTH as LLAMA_CONTEXT_LENGTH
from tests.worker.tiny_llama import tiny_llama
from worker.cuda.fake import FakeDriver
from worker.engine import Finish, Message, Piece, Sampling, TextEngine, TextRequest
from worker.engines.llm.engine import Limits, LlmEngine, open_llm
from worker.engines.llm.genai_decoder import GenaiDecoder
from worker.engines.llm.onnx_decoder import OnnxDecoder
from worker.engines.llm.sampling import Choice
from worker.engines.llm.tokens import open_tokens
from worker.engines.tensorrt.decoder import TensorRtDecoder

SLOTS = 3
# Over one page of the cache, over one part of a prompt, and one token: in the alphabet none of them ends at once.
PROMPTS = ("0", "0123456789" * 30, "012", "0" * 40)


def llama_onnx(folder: Path) -> LlmEngine:
    engine = open_llm(language_spec(parameters={"max_generations": str(SLOTS), "decoder": "onnx"}), tiny_llama(folder))
    assert isinstance(engine._decoder, OnnxDecoder)
    return engine


def llama_genai(folder: Path) -> LlmEngine:
    engine = open_llm(language_spec(parameters={"max_generations": str(SLOTS), "decoder": "genai"}), tiny_llama(folder))
    assert isinstance(engine._decoder, GenaiDecoder)
    return engine


def alphabet_genai(folder: Path) -> LlmEngine:
    engine = open_llm(language_spec(parameters={"max_generations": str(SLOTS)}), markov(folder))
    assert isinstance(engine._decoder, GenaiDecoder)
    return engine


def alphabet_table(folder: Path) -> LlmEngine:
    import onnxruntime_genai

    tokens = open_tokens(language_spec(), markov(folder), onnxruntime_genai)
    decoder = TableDecoder(table(), slots=SLOTS, context_length=CONTEXT_LENGTH)
    return LlmEngine(language_spec(), decoder, tokens, Limits(CONTEXT_LENGTH, 0, frozenset({2}), Choice(temperature=0.0)))


def llama_tensorrt(folder: Path) -> LlmEngine:
    """Over a GPU and a TensorRT that are not there."""
    spec, capacity = language_spec(), 64 * (LLAMA_CONTEXT_LENGTH // 64)
    plan = language_plan(spec, tiny_llama(folder), slots=SLOTS, part=32, capacity=capacity)
    engine = open_language(FakeDriver(), spec, folder, plan)
    assert isinstance(engine._decoder, TensorRtDecoder)
    return engine


ENGINES: tuple[Callable[[Path], TextEngine], ...] = (llama_onnx, llama_tensorrt, llama_genai, alphabet_genai, alphabet_table)


@pytest.fixture(scope="module", params=ENGINES, ids=lambda make: make.__name__)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    opened: TextEngine = request.param(tmp_path_factory.mktemp("model"))
    yield opened
    opened.close()


def test_it_is_one(engine: TextEngine) -> None:
    assert isinstance(engine, TextEngine)
    assert engine.slots == SLOTS


def test_every_answer_ends_once_and_is_counted(engine: TextEngine) -> None:
    made = pieces(engine, TextRequest("01", max_tokens=7))
    assert [piece.finish for piece in made[:-1]] == [None] * (len(made) - 1)
    last = made[-1]
    assert last.finish in (Finish.LENGTH, Finish.STOP)
    assert last.prompt_tokens == 2
    assert last.completion_tokens == len(token_ids(made)) <= 7
    assert (last.completion_tokens == 7) == (last.finish is Finish.LENGTH)
    assert all((piece.prompt_tokens, piece.completion_tokens) == (0, 0) for piece in made[:-1])


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1.0, seed=11), Sampling(top_p=0.6, seed=2)])
def test_company_changes_nothing(engine: TextEngine, sampling: Sampling) -> None:
    """Same seed, same text, whatever else is in the batch, and wherever in it the generation's row is."""
    requests = [TextRequest(prompt, sampling, max_tokens=24) for prompt in PROMPTS[:SLOTS]]
    alone = [token_ids(pieces(engine, request)) for request in requests]
    assert [token_ids(made) for made in together(engine, *requests)] == alone
    assert [token_ids(made) for made in together(engine, *reversed(requests))] == alone[::-1]


def test_joining_and_leaving_between_steps_changes_nothing(engine: TextEngine) -> None:
    requests = [TextRequest(prompt, Sampling(temperature=0), max_tokens=20) for prompt in PROMPTS]
    alone = [token_ids(pieces(engine, request)) for request in requests]
    running = [engine.begin(request) for request in requests[:SLOTS]]
    made: dict[int, list[Piece]] = {index: [] for index in range(len(requests))}

    def step(*indexes: int) -> None:
        for index, answer in zip(indexes, engine.step([running[index] for index in indexes]), strict=True):
            assert not isinstance(answer, PenstockError)
            if answer is not None:
                made[index].append(answer)

    for _ in range(4):
        step(0, 1, 2)
    running[0].close()  # its reader has left; another one takes the place
    running.append(engine.begin(requests[3]))
    for _ in range(3):
        step(2, 3)  # 1 pauses
    for _ in range(3):
        step(3, 1)
    rest = finish(engine, running[1:])
    for index in (1, 2, 3):
        assert token_ids(made[index] + rest[index - 1]) == alone[index]


def test_places_come_back_however_a_generation_ends(engine: TextEngine) -> None:
    for _ in range(3):
        left = [engine.begin(TextRequest(prompt, max_tokens=9)) for prompt in PROMPTS[:SLOTS]]
        engine.step(left)
        for generation in left:
            generation.close()
            generation.close()
    never_stepped = [engine.begin(TextRequest("0", max_tokens=9)) for _ in range(4 * SLOTS)]
    together(engine, *[TextRequest("0", max_tokens=3)] * SLOTS)
    for generation in never_stepped:
        generation.close()


def test_resuming_gives_the_rest(engine: TextEngine) -> None:
    """Also of a sampled text, where the seed is given again."""
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.8, seed=5, frequency_penalty=0.5)):
        request = TextRequest("0", sampling, max_tokens=16)
        whole = pieces(engine, request)
        tokens = token_ids(whole)
        for place in (1, len(tokens) // 2, len(tokens)):
            resumed = pieces(engine, TextRequest("0", sampling, max_tokens=16, resume_token_ids=tuple(tokens[:place])))
            assert token_ids(resumed) == tokens[place:]
            assert resumed[-1].completion_tokens == len(tokens)
            assert resumed[-1].prompt_tokens == whole[-1].prompt_tokens


def test_a_stop_string_is_never_shown(engine: TextEngine) -> None:
    whole = text(pieces(engine, TextRequest("0", max_tokens=20)))
    stop = whole[5:7]
    made = pieces(engine, TextRequest("0", max_tokens=20, stop=(stop,)))
    assert text(made) == whole[: whole.index(stop)]
    assert made[-1].finish is Finish.STOP


def test_log_probabilities_are_those_of_the_tokens_told(engine: TextEngine) -> None:
    made = pieces(engine, TextRequest("0", Sampling(temperature=1.0, seed=4), max_tokens=6, top_logprobs=3))
    for piece in made:
        assert [each.chosen.token_id for each in piece.logprobs] == list(piece.token_ids)
        for each in piece.logprobs:
            assert each.chosen.logprob <= 1e-6
            assert len(each.top) == 3
            assert [top.logprob for top in each.top] == sorted((top.logprob for top in each.top), reverse=True)
            assert each.chosen.logprob <= each.top[0].logprob
    without = pieces(engine, TextRequest("0", Sampling(temperature=1.0, seed=4), max_tokens=6))
    assert token_ids(without) == token_ids(made)
    assert all(not piece.logprobs for piece in without)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (TextRequest(""), "the prompt is empty"),
        (TextRequest(()), "no messages"),
        (TextRequest("0" * 700), "the prompt has 700 tokens"),
        (TextRequest("0" * 1_000_000), "the prompt has at least [0-9]+ tokens"),
        (TextRequest((Message("user", "0" * 1_000_000),)), "the prompt has at least [0-9]+ tokens"),
        (TextRequest("000", max_tokens=638), "3 tokens and max_tokens is 638, 641 together"),
        (TextRequest("0", resume_token_ids=(4000,)), "outside of this model's"),
        (TextRequest("0", resume_token_ids=(5,) * 640), "640 are to be resumed after"),
        (TextRequest("0", stop=("",)), "none of them empty"),
        (TextRequest("0", stop=("x" * 1025,)), "a stop string has 1025 letters"),
        (TextRequest("0", top_logprobs=21), "21 log probabilities"),
        (TextRequest("0", Sampling(temperature=float("nan"))), "temperature is nan"),
        (TextRequest((Message("root", "0"),)), "role 'root'"),
    ],
)
def test_a_refusal_needs_no_place(engine: TextEngine, request_: TextRequest, sentence: str) -> None:
    taken = [engine.begin(TextRequest("0", max_tokens=9)) for _ in range(SLOTS)]
    engine.step(taken)
    with pytest.raises(InvalidArgument, match=sentence):
        engine.begin(request_)
    finish(engine, taken)


def test_what_is_resumed_after_its_last_token_ends_at_once(engine: TextEngine) -> None:
    (only,) = pieces(engine, TextRequest("0", max_tokens=2, resume_token_ids=(30, 31)))
    assert (only.token_ids, only.finish, only.completion_tokens) == ((), Finish.LENGTH, 2)
