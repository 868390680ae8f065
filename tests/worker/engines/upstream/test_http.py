"""What becomes of a call to an upstream: time limits, retries, refusals, broken and garbled answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runtime.errors import ContextExceeded, DeadlineExceeded, PenstockError, UpstreamBusy, UpstreamUnavailable
from tests.support.upstream_server import (
    Asked,
    Reply,
    chat_chunk,
    gemini_answer,
    openai_answer,
    running_upstream,
)
from tests.support.waiting import eventually
from tests.worker.upstreams import (
    KEY,
    chat,
    events,
    opened,
    refusal,
    said,
    text_of,
    with_key,
)
from worker.engines.upstream.errors import (
    UpstreamGarbled,
    UpstreamKeyRefused,
    UpstreamModelNotFound,
    UpstreamMoved,
    UpstreamRefused,
    UpstreamSilent,
)


@pytest.mark.parametrize(
    ("timeouts", "answer", "sentence"),
    [
        ({"first_token_s": 0.05}, "nothing", "first_token_s = 0.05"),
        ({"first_token_s": 0.05}, "headers", "first_token_s = 0.05"),
        ({"first_token_s": 0.05}, "comments", "first_token_s = 0.05"),
        ({"between_tokens_s": 0.05}, "one", "between_tokens_s = 0.05"),
        ({"total_s": 0.05}, "one", "total_s = 0.05"),
    ],
)
async def test_a_silent_upstream(tmp_path: Path, timeouts: dict[str, float], answer: str, sentence: str) -> None:
    async def silent(asked: Asked, reply: Reply) -> None:
        if answer != "nothing":
            await reply.begin_events()
        if answer == "one":
            await reply.event(chat_chunk("a"))
        while answer == "comments":
            await reply.part(b": still there\n\n")
            await asyncio.sleep(0.01)
        await asyncio.Event().wait()

    async with running_upstream(silent) as upstream:
        async with opened(tmp_path, upstream.url, timeouts=timeouts) as engine:
            with pytest.raises(UpstreamSilent, match=sentence):
                await said(engine, chat("a"))
            await eventually(upstream.gone.is_set)


async def test_the_callers_deadline(tmp_path: Path) -> None:
    async with running_upstream(events(chat_chunk("a"), end=False)) as upstream:
        async with opened(tmp_path, upstream.url) as engine:
            with pytest.raises(DeadlineExceeded, match="the deadline passed"):
                await said(engine, chat("a"), asyncio.get_running_loop().time() + 0.05)


async def test_a_slow_reader_is_not_taken_for_a_silent_upstream(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        async with opened(tmp_path, upstream.url, timeouts={"between_tokens_s": 0.5}) as engine:
            pieces = []
            async for piece in engine.generate(chat("a b")):
                pieces.append(piece)
                if len(pieces) == 1:
                    await asyncio.sleep(0.6)  # longer than the upstream may take
            assert text_of(pieces) == "a b"


GARBLED = {
    "no JSON": (events(b"data: {\n\n"), "bytes that are no JSON"),
    "no UTF-8": (events(b'data: {"a": "\xff"}\n\n'), "bytes that are no JSON"),
    "no object": (events(["a"]), "list where an object is expected"),
    "a number for text": (events({"choices": [{"delta": {"content": 1}}]}), "int where a string is expected"),
    "a wrong count": (events({"choices": [], "usage": {"prompt_tokens": -1}}), "-1 where a count is expected"),
    "another type": (refusal(200, {"choices": []}), "'application/json', encoded 'identity'; text/event-stream"),
    "compressed": (
        refusal(200, b"x", content_type="text/event-stream", content_encoding="gzip"),
        "encoded 'gzip'",
    ),
}


@pytest.mark.parametrize("name", GARBLED)
async def test_what_no_api_says(tmp_path: Path, name: str) -> None:
    answer, sentence = GARBLED[name]
    async with running_upstream(answer) as upstream, opened(tmp_path, upstream.url) as engine:
        with pytest.raises(UpstreamGarbled, match=sentence):
            await said(engine, chat("a"))


async def test_an_event_without_an_end_is_not_kept(tmp_path: Path) -> None:
    async def endless(asked: Asked, reply: Reply) -> None:
        await reply.begin_events()
        for _ in range(100):
            await reply.part(b"x" * 65_536)

    async with running_upstream(endless) as upstream, opened(tmp_path, upstream.url) as engine:
        with pytest.raises(PenstockError, match="an event of more than 1048576 bytes"):
            await said(engine, chat("a"))


@pytest.mark.parametrize("cut", ["break", "end"])
async def test_an_answer_cut_short(tmp_path: Path, cut: str) -> None:
    answer = openai_answer if cut == "break" else events(chat_chunk("a"))
    async with running_upstream(answer) as upstream, opened(tmp_path, upstream.url) as engine:
        with pytest.raises(UpstreamUnavailable, match=r"broke off|ended before its end"):
            await said(engine, chat("break"))


async def test_an_error_among_the_events(tmp_path: Path) -> None:
    error = {"error": {"message": f"no memory for {KEY}", "type": "server_error", "code": None}}
    async with running_upstream(events(chat_chunk("a"), error)) as upstream:
        async with opened(tmp_path, upstream.url, access=with_key(tmp_path), key="mine") as engine:
            with pytest.raises(UpstreamUnavailable, match="failed while it answered: no memory for …"):
                await said(engine, chat("a"))


REFUSALS = [
    (400, {"error": {"message": "n is too large"}}, UpstreamRefused, "answered 400: n is too large"),
    (400, b"<html>no</html>", UpstreamRefused, "answered 400; change the request"),
    (400, {"message": "elsewhere"}, UpstreamRefused, "answered 400; change the request"),
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, ContextExceeded, "answered 400: too long"),
    (400, {"error": {"message": "maximum context length is 9"}}, ContextExceeded, "maximum context length is 9"),
    (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, UpstreamKeyRefused, "the operator has to look"),
    (403, None, UpstreamKeyRefused, "the operator has to look"),
    (404, {"error": {"message": "no such model"}}, UpstreamModelNotFound, "model and base_url in upstream.toml"),
    (422, {"error": {"message": f"bad {KEY} key"}}, UpstreamRefused, "bad … key"),
    (408, None, UpstreamSilent, "answered 408"),
    (429, None, UpstreamBusy, "back off"),
    (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, UpstreamKeyRefused, "account"),
    (307, None, UpstreamMoved, "redirects are not followed"),
    (500, {"error": {"message": "stack trace"}}, UpstreamUnavailable, "answered 500; retry"),
    (503, None, UpstreamUnavailable, "answered 503"),
    (504, None, UpstreamSilent, "answered 504"),
]


@pytest.mark.parametrize(("status", "content", "kind", "sentence"), REFUSALS)
async def test_refusals(tmp_path: Path, status: int, content: object, kind: type[PenstockError], sentence: str) -> None:
    async with running_upstream(refusal(status, content, location="http://127.0.0.1:1/")) as upstream:
        async with opened(tmp_path, upstream.url, access=with_key(tmp_path), key="mine") as engine:
            with pytest.raises(kind, match=sentence) as refused:
                await said(engine, chat("a"))
            assert KEY not in refused.value.message
            assert "stack trace" not in refused.value.message
        assert len(upstream.asked) == 1


async def test_how_long_to_wait_is_passed_on(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream, opened(tmp_path, upstream.url) as engine:
        with pytest.raises(UpstreamBusy) as busy:
            await said(engine, chat("refuse"))
        assert busy.value.retry_after_s == 7
    async with running_upstream(gemini_answer) as upstream, opened(tmp_path, upstream.url, api="gemini") as engine:
        with pytest.raises(UpstreamBusy) as busy:
            await said(engine, chat("refuse"))
        assert busy.value.retry_after_s == 7


def put_off(times: int, status: int, **headers: str) -> Callable[[Asked, Reply], Awaitable[None]]:
    """Refuses so often, then answers."""
    left = times

    async def answer(asked: Asked, reply: Reply) -> None:
        nonlocal left
        left -= 1
        await (refusal(status, None, **headers) if left >= 0 else openai_answer)(asked, reply)

    return answer


@pytest.mark.parametrize("status", [429, 503])
async def test_what_was_put_off_is_sent_again(tmp_path: Path, status: int) -> None:
    async with running_upstream(put_off(2, status, retry_after_ms="10")) as upstream:
        async with opened(tmp_path, upstream.url, max_retries=2) as engine:
            assert text_of(await said(engine, chat("at last"))) == "at last"
        assert len(upstream.asked) == 3


async def test_no_more_often_than_allowed_and_nothing_else(tmp_path: Path) -> None:
    async with running_upstream(put_off(9, 429, retry_after_ms="1")) as upstream:
        async with opened(tmp_path, upstream.url, max_retries=2) as engine:
            with pytest.raises(UpstreamBusy):
                await said(engine, chat("a"))
        assert len(upstream.asked) == 3
    async with running_upstream(put_off(1, 500)) as upstream:
        async with opened(tmp_path, upstream.url, max_retries=2) as engine:
            with pytest.raises(UpstreamUnavailable):
                await said(engine, chat("a"))
        assert len(upstream.asked) == 1


async def test_a_wait_beyond_the_deadline_is_not_begun(tmp_path: Path) -> None:
    async with running_upstream(put_off(1, 429, retry_after="3")) as upstream:
        async with opened(tmp_path, upstream.url, max_retries=5) as engine:
            with pytest.raises(UpstreamBusy) as busy:
                await said(engine, chat("a"), asyncio.get_running_loop().time() + 2)
        assert busy.value.retry_after_s == 3
        assert len(upstream.asked) == 1


async def test_a_connection_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        url = upstream.url
    async with opened(tmp_path, url) as engine:
        with pytest.raises(UpstreamUnavailable, match="takes no connections"):
            await said(engine, chat("a"))
    async with opened(tmp_path, url, max_retries=1, timeouts={"first_token_s": 5.0}) as engine:
        with pytest.raises(UpstreamUnavailable, match="takes no connections"):
            await said(engine, chat("a"))


async def test_a_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_upstream(openai_answer) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        async with opened(tmp_path, "http://127.0.0.1:9") as engine:
            assert text_of(await said(engine, chat("by proxy"))) == "by proxy"
        assert proxy.asked[0].path == "http://127.0.0.1:9/v1/chat/completions"
