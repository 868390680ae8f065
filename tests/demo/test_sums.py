"""The committed `sums` model through ONNX Runtime GenAI: right on pairs it never saw, streamed, stopped, batched."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import onnxruntime_genai as genai
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cli" / "demo" / "sums"
LONGEST_ANSWER_TOKENS = 64


def held_out(a: int, b: int) -> bool:
    """Whether training never saw the pair: the rule of build/demo_models/sums_train.py."""
    return (a * b) % 7 == 3


def sampled(count: int) -> list[tuple[int, int]]:
    kept = [(a, b) for a in range(10, 100) for b in range(10, 100) if held_out(a, b)]
    return random.Random(7).sample(kept, count)


class Sums:
    """The model and its tokenizer, loaded once."""

    def __init__(self) -> None:
        self.model = genai.Model(str(FOLDER))
        self.tokenizer = genai.Tokenizer(self.model)

    def prompt(self, *messages: tuple[str, str]) -> list[int]:
        """The tokens of a conversation of (role, text) that waits for the assistant."""
        told = json.dumps([{"role": role, "content": text} for role, text in messages])
        return [int(token) for token in self.tokenizer.encode(self.tokenizer.apply_chat_template(told))]

    def tokens(self, prompt: list[int]) -> list[int]:
        """What follows, greedily, the end token included."""
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=len(prompt) + LONGEST_ANSWER_TOKENS, do_sample=False)
        generator = genai.Generator(self.model, params)
        generator.append_tokens(prompt)
        made = []
        while not generator.is_done():
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))  # get_sequence() would leave the end token out
        return made

    def answer(self, *messages: tuple[str, str]) -> str:
        return str(self.tokenizer.decode(self.tokens(self.prompt(*messages))))


@pytest.fixture(scope="module")
def sums() -> Sums:
    return Sums()


@pytest.mark.parametrize(
    "phrasing", ["{a}+{b}", "{a} + {b}", "{a}+{b}=", "{a} + {b} = ?", "What is {a} + {b}?", "add {a} and {b}"]
)
def test_held_out_pairs_are_exact(sums: Sums, phrasing: str) -> None:
    """At least 95 % of sums that training never saw, word for word, in every phrasing."""
    pairs = sampled(100)
    right = sum(sums.answer(("user", phrasing.format(a=a, b=b))) == f"{a} + {b} = {a + b}" for a, b in pairs)
    assert right >= 0.95 * len(pairs)


def test_the_end_token_stops_it(sums: Sums) -> None:
    tokens = sums.tokens(sums.prompt(("user", "12+34")))
    assert tokens[-1] in list(sums.tokenizer.eos_token_ids)
    assert len(tokens) < LONGEST_ANSWER_TOKENS
    assert sums.tokenizer.decode(tokens) == "12 + 34 = 46"


def test_text_streams_token_by_token(sums: Sums) -> None:
    """Several pieces, one a token, that add up to the whole answer."""
    stream = sums.tokenizer.create_stream()
    pieces = [stream.decode(token) for token in sums.tokens(sums.prompt(("user", "12 + 34")))]
    assert "".join(pieces) == "12 + 34 = 46"
    assert sum(bool(piece) for piece in pieces) == len("12 + 34 = 46")


def test_a_conversation_goes_on(sums: Sums) -> None:
    told = (("system", "Be brief."), ("user", "12+34"), ("assistant", "12 + 34 = 46"), ("user", "What is 20 + 7?"))
    assert sums.answer(*told) == "20 + 7 = 27"


def test_a_started_answer_is_continued(sums: Sums) -> None:
    """Prompt and tokens so far give the same rest: what lets another worker take a generation over."""
    prompt = sums.prompt(("user", "58 + 67"))
    whole = sums.tokens(prompt)
    assert sums.tokens(prompt + whole[:6]) == whole[6:]


@pytest.mark.parametrize("asked", ["hello", "9 - 4", "123 + 45"])
def test_what_is_not_a_sum_is_declined(sums: Sums, asked: str) -> None:
    assert sums.answer(("user", asked)) == "I only add two numbers up to 99. Try 12 + 34."


@pytest.mark.parametrize("asked", ["더하기", "", "\x00\x7f", "🙂🙂", "x" * 300])
def test_any_text_is_answered_and_stops(sums: Sums, asked: str) -> None:
    tokens = sums.tokens(sums.prompt(("user", asked)))
    assert tokens[-1] in list(sums.tokenizer.eos_token_ids)


def test_the_engine_batches_requests(sums: Sums) -> None:
    """GenAI's Engine answers several requests of one batch as the Generator answers each alone."""
    engine = genai.Engine(sums.model)
    events = engine.create_event_buffer(16)
    asked = ["12+34", "What is 58 + 67?", "99 + 1", "add 10 and 25"]
    requests = []
    said: list[list[int]] = [[] for _ in asked]
    for text in asked:
        request = engine.create_request()
        options = genai.TurnOptions(request)
        options.set_max_generated_tokens(LONGEST_ANSWER_TOKENS)
        request.begin_turn(sums.prompt(("user", text)), options)
        requests.append(request)
    reasons = []
    while engine.has_pending_requests():
        happened = engine.run(events)
        for event in (happened[index] for index in range(len(happened))):
            if event.token is not None:
                said[requests.index(event.request)].append(int(event.token))
            if event.finish_reason != genai.FinishReason.NONE:
                reasons.append(event.finish_reason)
    for request in requests:
        request.close()
    assert reasons == [genai.FinishReason.EOS] * len(asked)
    assert [sums.tokenizer.decode(tokens) for tokens in said] == [sums.answer(("user", text)) for text in asked]


def test_description_matches_the_model() -> None:
    written = tomllib.loads((FOLDER / "model.toml").read_text())
    settings = json.loads((FOLDER / "genai_config.json").read_text())
    assert (written["name"], written["engine"], written["task"]) == ("sums", "llm", "chat")
    assert written["max_batch_size"] == 0
    assert [(i["name"], i["datatype"], i["shape"]) for i in written["inputs"]] == [("text_input", "BYTES", [1])]
    assert [(o["name"], o["datatype"], o["shape"]) for o in written["outputs"]] == [("text_output", "BYTES", [1])]
    assert int(written["parameters"]["context_length"]) == settings["model"]["context_length"]


def test_demo_models_stay_small() -> None:
    """Both together fit the tree: at most 4 MB."""
    assert sum(file.stat().st_size for file in (ROOT / "cli" / "demo").rglob("*") if file.is_file()) <= 4_000_000
