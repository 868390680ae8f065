"""Upstream models over real HTTP: streams, disconnects, keys, embeddings, opening."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import PenstockError, UpstreamUnavailable
from tests.support.upstream_server import (
    Asked,
    Reply,
    chat_chunk,
    gemini_answer,
    openai_answer,
    running_upstream,
    vector_of,
)
from tests.support.waiting import eventually
from tests.worker.upstreams import (
    KEY,
    chat,
    chat_spec,
    embedding_spec,
    end_of,
    events,
    opened,
    refusal,
    said,
    text_of,
    with_key,
    write,
)
from worker.engine import Finish, Message, ModelRefused, Piece, Sampling, TextRequest, ToolCallPart, ToolUse
from worker.engines.upstream.engine import CannotResume, joined, open_upstream
from worker.engines.upstream.errors import UpstreamClosed, UpstreamGarbled, UpstreamModelNotFound
from worker.engines.upstream.http import FREE_STREAMS
from worker.remote.upstream_hosts import HostRefused
from worker.remote.upstream_keys import KeysRefused, UpstreamAccess
from worker.types import Task


@pytest.mark.parametrize("api", ["openai", "gemini"])
async def test_pieces_come_as_the_upstream_sends_them(tmp_path: Path, api: str) -> None:
    async with running_upstream(openai_answer if api == "openai" else gemini_answer) as upstream:
        async with opened(tmp_path, upstream.url, api=api) as engine:
            for _ in range(3):
                pieces = await said(engine, chat("hällo big world"))
                assert text_of(pieces) == "hällo big world"
                assert pieces[-1].finish is Finish.STOP
                assert end_of(pieces) == (Finish.STOP, 3, 3 if api == "openai" else 5)
                assert all(piece.token_ids == () for piece in pieces)
        assert upstream.connections == 1, "a connection whose answer was whole is used again"


@pytest.mark.parametrize("api", ["openai", "gemini"])
async def test_a_whole_answer_is_asked_for_where_nobody_reads_it_before_its_end(tmp_path: Path, api: str) -> None:
    async with running_upstream(openai_answer if api == "openai" else gemini_answer) as upstream:
        async with opened(tmp_path, upstream.url, api=api) as engine:
            (only,) = await said(engine, chat("hällo big world", whole=True))
            assert (only.text, only.finish) == ("hällo big world", Finish.STOP)
            assert (only.prompt_tokens, only.completion_tokens) == ((3, 3) if api == "openai" else (1, 2))
            await said(engine, chat("again", whole=True))
        assert upstream.connections == 1
        assert "stream" not in upstream.asked[0].body
        assert "stream" not in upstream.asked[0].path
        async with opened(tmp_path / "streams", upstream.url, api=api, always_stream=True) as engine:
            pieces = await said(engine, chat("hällo big world", whole=True))
            assert text_of(pieces) == "hällo big world"
        assert upstream.asked[-1].body.get("stream") or upstream.asked[-1].path.endswith("alt=sse")


async def test_a_whole_answer_may_take_as_long_as_it_takes(tmp_path: Path) -> None:
    async def slow(asked: Asked, reply: Reply) -> None:
        await asyncio.sleep(0.3)
        await openai_answer(asked, reply)

    async with running_upstream(slow) as upstream:
        async with opened(tmp_path, upstream.url, timeouts={"first_token_s": 0.1}) as engine:
            assert text_of(await said(engine, chat("at last", whole=True))) == "at last"
        async with opened(tmp_path / "b", upstream.url, timeouts={"total_s": 0.1}) as engine:
            with pytest.raises(PenstockError, match=r"longer than total_s = 0\.1"):
                await said(engine, chat("never", whole=True))


async def test_a_whole_answer_with_calls(tmp_path: Path) -> None:
    use = ToolUse('[{"type":"function","function":{"name":"echo"}}]')
    async with running_upstream(openai_answer) as upstream, opened(tmp_path, upstream.url) as engine:
        (whole,) = await said(engine, chat("two words", whole=True, tool_use=use))
        streamed = await said(engine, chat("two words", tool_use=use))
    assert [part.name for part in whole.tool_calls] == ["echo"]
    parts = [part for piece in streamed for part in piece.tool_calls]
    assert "".join(part.arguments for part in parts) == whole.tool_calls[0].arguments == '{"words": "two words "}'
    assert whole.finish is streamed[-1].finish is Finish.TOOL_CALLS


async def test_what_came_before_a_failure_is_given_first(tmp_path: Path) -> None:
    both = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\ndata: {"error":{"message":"no memory"}}\n\n'
    async with running_upstream(events(both)) as upstream, opened(tmp_path, upstream.url) as engine:
        answer = engine.generate(chat("a"))
        assert (await anext(answer)).text == "half"
        with pytest.raises(UpstreamUnavailable, match="no memory"):
            await anext(answer)


async def test_many_answers_side_by_side_are_all_whole(tmp_path: Path) -> None:
    texts = [" ".join(f"{answer}.{word}" for word in range(12)) for answer in range(3 * FREE_STREAMS)]
    async with running_upstream(openai_answer) as upstream, opened(tmp_path, upstream.url) as engine:
        answers = await asyncio.gather(*(said(engine, chat(text)) for text in texts))
        assert [text_of(pieces) for pieces in answers] == texts
        assert all(end_of(pieces) == (Finish.STOP, 12, 12) for pieces in answers)
        assert engine._client.streams == 0


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2)), min_size=1, max_size=6))
def test_pieces_that_came_together_say_the_same_as_one(parts: list[tuple[str, int]]) -> None:
    pieces = [
        Piece(text, (), tool_calls=tuple(ToolCallPart(0, arguments=f"{each}") for each in range(calls)))
        for text, calls in parts
    ]
    whole = joined([*pieces, Piece("", (), Finish.LENGTH, 3, 4)])
    assert whole.text == "".join(text for text, _ in parts)
    assert whole.tool_calls == tuple(call for piece in pieces for call in piece.tool_calls)
    assert (whole.finish, whole.prompt_tokens, whole.completion_tokens) == (Finish.LENGTH, 3, 4)


async def test_a_completion(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path, upstream.url, task=Task.COMPLETION) as engine:
            assert text_of(await said(engine, TextRequest("one two"))) == "one two"
            assert upstream.asked[0].path == "/v1/completions"
            assert upstream.asked[0].body["prompt"] == "one two"


async def test_only_what_was_asked_for_is_sent(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path, upstream.url) as engine:
            await said(engine, chat("a"))
            full = Sampling(0.5, 0.9, 40, 2**64 - 1, 0.1, -0.2, 1.5)
            await said(engine, chat("a", sampling=full, max_tokens=7, stop=("x",), top_logprobs=2))
    plain, asked = (each.body for each in upstream.asked)
    message = [{"role": "user", "content": "a"}]
    common = {"model": "echo", "messages": message, "stream": True, "stream_options": {"include_usage": True}}
    assert plain == common
    assert asked == {
        **common,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": -1,
        "max_tokens": 7,
        "stop": ["x"],
        "frequency_penalty": 0.1,
        "presence_penalty": -0.2,
        "repetition_penalty": 1.5,
        "logprobs": True,
        "top_logprobs": 2,
    }


async def test_the_key_and_the_headers_go_to_the_upstream(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        fields: dict[str, Any] = {"key": "mine", "organisation": "org-1", "headers": {"x-title": "penstock"}}
        async with opened(tmp_path, upstream.url, access=with_key(tmp_path), **fields) as engine:
            await said(engine, chat("a"))
        async with opened(tmp_path / "b", upstream.url) as engine:
            await said(engine, chat("a"))
    first, second = (each.headers for each in upstream.asked)
    assert (first["authorization"], first["openai-organization"], first["x-title"]) == (f"Bearer {KEY}", "org-1", "penstock")
    assert "authorization" not in second
    assert "python" not in first["user-agent"]


async def test_geminis_key_goes_in_a_header(tmp_path: Path) -> None:
    async with running_upstream(gemini_answer) as upstream:
        async with opened(tmp_path, upstream.url, access=with_key(tmp_path), api="gemini", key="mine") as engine:
            await said(engine, chat("a"))
    assert upstream.asked[0].headers["x-goog-api-key"] == KEY
    assert KEY not in upstream.asked[0].path


@pytest.mark.parametrize("api", ["openai", "gemini"])
async def test_a_reader_that_leaves_ends_the_stream_upstream(tmp_path: Path, api: str) -> None:
    async with running_upstream(openai_answer if api == "openai" else gemini_answer) as upstream:
        async with opened(tmp_path, upstream.url, api=api) as engine:
            async with aclosing(engine.generate(chat("hang"))) as pieces:
                assert (await anext(pieces)).text == "hang"
                assert not upstream.gone.is_set()
            await eventually(upstream.gone.is_set)


async def test_a_cancelled_reader_ends_the_stream_upstream(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path, upstream.url) as engine:
            reading = asyncio.ensure_future(said(engine, chat("hang")))
            await eventually(lambda: upstream.under_way == 1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await eventually(upstream.gone.is_set)
            assert text_of(await said(engine, chat("and on"))) == "and on"


async def test_cancelling_before_the_answer_began(tmp_path: Path) -> None:
    async def never(asked: Asked, reply: Reply) -> None:
        await asyncio.Event().wait()

    async with running_upstream(never) as upstream:
        async with opened(tmp_path, upstream.url) as engine:
            reading = asyncio.ensure_future(said(engine, chat("a")))
            await eventually(lambda: len(upstream.asked) == 1)
            reading.cancel()
            await eventually(upstream.gone.is_set)


async def test_a_slow_reader_slows_the_upstream(tmp_path: Path) -> None:
    chunk = b"data: " + json.dumps(chat_chunk("x" * 10_000)).encode() + b"\n\n"
    replies: list[Reply] = []

    async def flood(asked: Asked, reply: Reply) -> None:
        replies.append(reply)
        await reply.begin_events()
        for _ in range(10_000):  # 100 MB
            await reply.part(chunk)

    async with running_upstream(flood) as upstream:
        async with opened(tmp_path, upstream.url) as engine:
            async with aclosing(engine.generate(chat("a"))) as pieces:
                await anext(pieces)
                sent_bytes = -1
                while sent_bytes != replies[0].sent_bytes:  # until the server can write no more
                    sent_bytes = replies[0].sent_bytes
                    await asyncio.sleep(0.2)
                assert sent_bytes < 20_000_000
                for _ in range(1000):
                    await anext(pieces)
                await eventually(lambda: replies[0].sent_bytes > sent_bytes)
            await eventually(upstream.gone.is_set)


async def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream, opened(tmp_path, upstream.url) as engine:
        waiting = asyncio.ensure_future(said(engine, chat("hang")))
        held = engine.generate(chat("hang"))
        await anext(held)
        await eventually(lambda: upstream.under_way == 2)
        await engine.aclose()
        for call in (waiting, asyncio.ensure_future(anext(held))):
            with pytest.raises(UpstreamClosed, match="was unloaded"):
                await call
        with pytest.raises(UpstreamClosed):
            await said(engine, chat("a"))
        await eventually(lambda: upstream.under_way == 0)


async def test_tokens_of_another_worker_mean_nothing_here(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream, opened(tmp_path, upstream.url) as engine:
        with pytest.raises(CannotResume, match="send it anew"):
            await said(engine, chat("a", resume_token_ids=(1, 2)))
        assert upstream.asked == []


@pytest.mark.parametrize("api", ["openai", "gemini"])
async def test_embeddings(tmp_path: Path, api: str) -> None:
    texts = ["a", "wörld", "the third"]
    async with running_upstream(openai_answer if api == "openai" else gemini_answer) as upstream:
        async with opened(tmp_path, upstream.url, task=Task.EMBEDDING, api=api) as engine:
            vectors = await engine.embed(texts)
            assert vectors.dtype == np.float32
            np.testing.assert_array_equal(vectors, np.array([vector_of(text) for text in texts], np.float32))
            many = [f"text {number}" for number in range(250)]
            assert (await engine.embed(many)).shape == (250, 3)
        assert len(upstream.asked) == (2 if api == "openai" else 4), "as few calls as the API takes"
        assert upstream.connections == 1


async def test_embeddings_in_decimals(tmp_path: Path) -> None:
    data = [{"index": 0, "embedding": [1, 2.5]}, {"index": 1, "embedding": [3, 4]}]
    async with running_upstream(refusal(200, {"data": data})) as upstream:
        async with opened(tmp_path, upstream.url, task=Task.EMBEDDING) as engine:
            np.testing.assert_array_equal(await engine.embed(["a", "b"]), np.array([[1, 2.5], [3, 4]], np.float32))


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}],
        [{"index": 0, "embedding": "?"}, {"index": 1, "embedding": "?"}],
        [{"index": 0, "embedding": ["a"]}, {"index": 1, "embedding": ["b"]}],
        [{"index": 0, "embedding": [1e39]}, {"index": 1, "embedding": [0]}],
        [{"index": 0}, {"index": 1}],
    ],
)
async def test_embeddings_that_are_none(tmp_path: Path, data: object) -> None:
    async with running_upstream(refusal(200, {"data": data})) as upstream:
        async with opened(tmp_path, upstream.url, task=Task.EMBEDDING) as engine:
            with pytest.raises(UpstreamGarbled):
                await engine.embed(["a", "b"])


async def test_opening_asks_nobody_unless_told_to(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path / "a", upstream.url) as engine:
            await engine.check()
            assert upstream.asked == []
        async with opened(tmp_path / "b", upstream.url, check=True) as engine:
            await engine.check()
            assert (upstream.asked[0].method, upstream.asked[0].path) == ("GET", "/v1/models")
        async with opened(tmp_path / "c", upstream.url, check=True, model="other") as engine:
            with pytest.raises(UpstreamModelNotFound, match="'other'"):
                await engine.check()
    async with running_upstream(gemini_answer) as upstream:
        async with opened(tmp_path / "d", upstream.url, api="gemini", check=True) as engine:
            await engine.check()
            assert upstream.asked[0].path == "/v1beta/models/echo"
        async with opened(tmp_path / "e", "http://127.0.0.1:9", check=True) as engine:
            with pytest.raises(UpstreamUnavailable):
                await engine.check()


def test_what_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"needs a file upstream\.toml"):
        open_upstream(chat_spec(), tmp_path)
    with pytest.raises(ModelRefused, match="task 'tensor'"):
        open_upstream(chat_spec(Task.TENSOR), write(tmp_path, "http://127.0.0.1"))
    with pytest.raises(HostRefused, match=r"calls '169.254.169.254', an address of the local link"):
        open_upstream(chat_spec(), write(tmp_path, "http://169.254.169.254"), UpstreamAccess(hosts=("169.254.0.0/16",)))
    with pytest.raises(HostRefused, match="'intranet'"):
        open_upstream(embedding_spec(), write(tmp_path, "https://intranet"))
    with pytest.raises(KeysRefused, match="'mine'"):
        open_upstream(chat_spec(), write(tmp_path, "https://127.0.0.1", key="mine"))


async def test_a_conversation_for_a_model_that_completes_text(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path, upstream.url, task=Task.COMPLETION) as engine:
            with pytest.raises(PenstockError, match="takes no conversation"):
                await said(engine, TextRequest((Message("user", "a"),)))
