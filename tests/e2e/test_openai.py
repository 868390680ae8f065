"""The OpenAI API of a whole mesh, as `penstock up` starts it: real Envoy, gateway, scheduler, worker and model."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.mesh import RunningMesh

QUESTION = "What is 12 plus 30?"
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=mesh.api_key, base_url=f"{mesh.http_url}/v1", max_retries=0, timeout=30) as made:
        yield made


def test_the_models_of_the_mesh(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"digits", "sums"} <= models.keys()
    assert client.models.retrieve("sums").created == models["sums"].created > 1_600_000_000


def test_an_answer_in_one_and_in_events(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sums", messages=TALK, temperature=0)
    text = whole.choices[0].message.content
    assert text is not None
    assert "42" in text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    chunks = list(
        client.chat.completions.create(
            model="sums", messages=TALK, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == whole.usage


def test_a_limit_of_tokens_ends_an_answer(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="sums", messages=TALK, temperature=0, max_completion_tokens=1)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 1


def test_a_prompt_is_taken_as_it_is(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sums", prompt=QUESTION, max_tokens=4, temperature=0)
    assert answer.object == "text_completion"


def test_a_prompt_too_long_is_the_callers_to_mend(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        client.chat.completions.create(model="sums", messages=[{"role": "user", "content": "1 " * 5000}], stream=True)
    assert refused.value.code == "context_length_exceeded"


def test_log_probabilities_penalties_and_several_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sums", messages=TALK, temperature=0, logprobs=True, top_logprobs=2, n=2, frequency_penalty=0.1
    )
    first, second = answer.choices
    assert first.message.content == second.message.content
    assert first.logprobs is not None
    told = first.logprobs.content or []
    assert b"".join(bytes(each.bytes or ()) for each in told).decode().strip() == (first.message.content or "").strip()
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in told)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="sums", messages=TALK, response_format={"type": "json_object"})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")


def test_models_for_something_else_and_models_that_are_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as tensors:
        client.chat.completions.create(model="digits", messages=TALK)
    assert (tensors.value.code, tensors.value.param) == ("unsupported_model", "model")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nothing", messages=TALK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as vectors:
        client.embeddings.create(model="digits", input="a")
    assert vectors.value.code == "unsupported_model"


def test_a_wrong_key(mesh: RunningMesh) -> None:
    with openai.OpenAI(api_key="sk-wrong", base_url=f"{mesh.http_url}/v1", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
    assert refused.value.code == "invalid_api_key"
