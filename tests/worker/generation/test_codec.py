"""Generation messages, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument
from worker.engine import Finish, Logprob, Message, Piece, Sampling, TextRequest, TokenLogprob, ToolCallPart, ToolUse
from worker.generation.codec import generate_response, parse_generate

FRACTIONS = st.none() | st.floats(0, 2, width=32)


@settings(deadline=None)
@given(FRACTIONS, FRACTIONS, FRACTIONS, st.none() | st.integers(0, 2**63), st.none() | st.integers(0, 20))
def test_what_is_asked_arrives_and_what_is_not_is_absent(
    temperature: float | None, frequency: float | None, repetition: float | None, seed: int | None, top_logprobs: int | None
) -> None:
    message = worker_pb2.GenerateRequest(
        model="m",
        prompt="p",
        sampling=worker_pb2.Sampling(
            temperature=temperature,
            seed=seed,
            frequency_penalty=frequency,
            presence_penalty=frequency,
            repetition_penalty=repetition,
        ),
        max_tokens=3,
        stop=["x"],
        resume_token_ids=[1, 2],
        top_logprobs=top_logprobs,
    )
    sampling = Sampling(
        temperature=temperature,
        seed=seed,
        frequency_penalty=frequency,
        presence_penalty=frequency,
        repetition_penalty=repetition,
    )
    expected = TextRequest("p", sampling, 3, ("x",), (1, 2), top_logprobs)
    assert parse_generate(message.SerializeToString()) == ("m", expected)


def test_a_conversation() -> None:
    turns = [worker_pb2.ChatMessage(role="user", content="hi"), worker_pb2.ChatMessage(role="assistant")]
    message = worker_pb2.GenerateRequest(chat=worker_pb2.Chat(messages=turns))
    _, request = parse_generate(message.SerializeToString())
    assert request.prompt == (Message("user", "hi"), Message("assistant", ""))


def test_tools_formats_and_biases() -> None:
    turns = [
        worker_pb2.ChatMessage(role="user", content="hi", name="eve"),
        worker_pb2.ChatMessage(role="assistant", tool_calls_json="[]"),
        worker_pb2.ChatMessage(role="tool", content="2", tool_call_id="c1"),
    ]
    message = worker_pb2.GenerateRequest(
        chat=worker_pb2.Chat(messages=turns),
        tools_json="[1]",
        tool_choice_json='"auto"',
        response_format_json="{}",
        logit_bias={7: -1.5},
        parallel_tool_calls=False,
    )
    _, request = parse_generate(message.SerializeToString())
    assert request.prompt == (
        Message("user", "hi", "eve"),
        Message("assistant", "", tool_calls_json="[]"),
        Message("tool", "2", tool_call_id="c1"),
    )
    assert request.tool_use == ToolUse("[1]", '"auto"', False, "{}")
    assert request.logit_bias == {7: -1.5}
    message.ClearField("parallel_tool_calls")
    assert parse_generate(message.SerializeToString())[1].tool_use.parallel is None


def test_parts_of_tool_calls_and_why_an_answer_ended() -> None:
    parts = (ToolCallPart(0, "c1", "add", "{"), ToolCallPart(1, arguments="}"))
    response = worker_pb2.GenerateResponse.FromString(generate_response(Piece("", (), Finish.TOOL_CALLS, tool_calls=parts)))
    assert [(each.index, each.id, each.name, each.arguments) for each in response.tool_calls] == [
        (0, "c1", "add", "{"),
        (1, "", "", "}"),
    ]
    assert response.finish_reason == worker_pb2.FINISH_REASON_TOOL_CALLS
    response = worker_pb2.GenerateResponse.FromString(generate_response(Piece("", (), Finish.CONTENT_FILTER)))
    assert response.finish_reason == worker_pb2.FINISH_REASON_CONTENT_FILTER


@pytest.mark.parametrize("payload", [b"\xff", b""])
def test_what_is_no_request(payload: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_generate(payload)


def test_a_pieces_tokens_and_their_log_probabilities() -> None:
    place = TokenLogprob(Logprob(7, b"\xe2", -0.5), (Logprob(7, b"\xe2", -0.5), Logprob(8, b"b", -1.5)))
    piece = Piece("é", (7, 8), logprobs=(place, TokenLogprob(Logprob(8, b"b", -2.0))))
    response = worker_pb2.GenerateResponse.FromString(generate_response(piece))
    assert (response.text, list(response.token_ids)) == ("é", [7, 8])
    assert response.finish_reason == worker_pb2.FINISH_REASON_UNSPECIFIED
    assert not response.HasField("usage")
    assert [(each.chosen.token_id, each.chosen.token, len(each.top)) for each in response.logprobs] == [
        (7, b"\xe2", 2),
        (8, b"b", 0),
    ]
    assert response.logprobs[0].top[1].logprob == -1.5


def test_the_last_piece_has_the_usage() -> None:
    response = worker_pb2.GenerateResponse.FromString(generate_response(Piece("", (), Finish.LENGTH, 4, 9)))
    assert response.finish_reason == worker_pb2.FINISH_REASON_LENGTH
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (4, 9)
