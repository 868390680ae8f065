"""Upstreams to call: a real HTTP/1.1 server, with answers as OpenAI's API and as Google's Gemini API give them.

What a request says decides the answer: a last message "refuse" is answered 429, "hang" begins an answer and goes no further,
"break" begins one and cuts the connection; anything else is echoed word by word. A test may put its own `answer` in the place.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDTH = 3
RETRY_AFTER_S = 7


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    connection: int

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(slots=True)
class Reply:
    """Writes one answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    keep_alive: bool = True
    sent_bytes: int = 0

    async def whole(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.begin(status, {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})})
        await self._write(body)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await self._write("\r\n".join(lines).encode())

    async def begin_events(self) -> None:
        await self.begin(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})

    async def event(self, content: object) -> None:
        await self.part(b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n")

    async def part(self, data: bytes) -> None:
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self._write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent_bytes += len(data)


Answer = Callable[[Asked, Reply], Awaitable[None]]


@dataclass(slots=True)
class UpstreamServer:
    """One server. `gone` is set once a client left in the midst of an answer."""

    answer: Answer
    asked: list[Asked] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    under_way: int = 0
    most_under_way: int = 0
    port: int = 0
    scheme: str = "http"
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self.connections += 1
        number = self.connections
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            begun = b""
            while True:
                asked = await _read(reader, number, begun)
                self.asked.append(asked)
                reply = Reply(reader, writer)
                begun = await self._answer(asked, reply)
                if not reply.keep_alive or writer.transport.is_closing():
                    break
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def _answer(self, asked: Asked, reply: Reply) -> bytes:
        """Answer while watching whether the client is still there. Gives what it has read of the next request."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        answering = asyncio.ensure_future(self.answer(asked, reply))
        watching = asyncio.ensure_future(reply.reader.read(1))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() or isinstance(answering.exception(), ConnectionError):
                self.gone.set()
                reply.keep_alive = False
            return watching.result() if watching.done() else b""
        finally:
            self.under_way -= 1
            for task in (answering, watching):
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError):
                    await task


async def _read(reader: asyncio.StreamReader, number: int, begun: bytes) -> Asked:
    head = (begun + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, raw, number)


@asynccontextmanager
async def running_upstream(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[UpstreamServer]:
    """A server on a free port of loopback, while the context lasts."""
    upstream = UpstreamServer(answer, scheme="https" if tls else "http")

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(upstream.serve(reader, writer))
        upstream._tasks.add(task)
        task.add_done_callback(upstream._tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in list(upstream._tasks):
            task.cancel()
        await asyncio.gather(*upstream._tasks, return_exceptions=True)
        await server.wait_closed()


@contextmanager
def upstream_thread(answer: Answer) -> Iterator[UpstreamServer]:
    """The same on a loop of its own, for tests that block."""
    started: list[UpstreamServer] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_upstream(answer) as upstream:
            started.append(upstream)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10), "the upstream did not start"
    try:
        yield started[0]
    finally:
        over.set()
        thread.join(10)


def chat_chunk(content: str | None = None, finish: str | None = None, **more: Any) -> Mapping[str, Any]:
    """A chunk of a chat as vLLM writes it."""
    delta = {} if content is None else {"content": content}
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        **more,
    }


def text_chunk(text: str, finish: str | None = None) -> Mapping[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def gemini_chunk(text: str, finish: str | None = None, **usage: int) -> Mapping[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-test"}


async def openai_answer(asked: Asked, reply: Reply) -> None:
    """OpenAI's API: chats and completions are streamed, embeddings tell of their text's length."""
    match asked.path.rpartition("/")[2]:
        case "models":
            await reply.whole({"object": "list", "data": [{"id": "echo", "object": "model"}]})
        case "embeddings":
            await _embed(asked.body, reply)
        case "completions" if not asked.body.get("stream") and _text_asked(asked.body) not in ("refuse", "break", "hang"):
            await _whole(asked.body, reply)
        case "completions" if "messages" in asked.body:
            await (_call if "tools" in asked.body else _talk)(asked.body["messages"][-1]["content"], reply, chat_chunk)
        case "completions":
            await _talk(asked.body["prompt"], reply, text_chunk)
        case _:
            await reply.whole({"error": {"message": "no such path", "type": "invalid_request_error"}}, 404)


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(len(text.encode())), 0.5]


async def _embed(body: Any, reply: Reply) -> None:
    vectors = [vector_of(text) for text in body["input"]]
    encoded = body.get("encoding_format") == "base64"
    data = [
        {"index": index, "embedding": base64.b64encode(np.array(vector, "<f4").tobytes()).decode() if encoded else vector}
        for index, vector in enumerate(vectors)
    ]
    # Backwards, because nothing says that they stand in order.
    await reply.whole({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 1, "total_tokens": 1}})


async def _talk(text: str, reply: Reply, chunk: Callable[..., Mapping[str, Any]]) -> None:
    if text == "refuse":
        error = {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}
        await reply.whole({"error": error}, 429, {"retry-after": str(RETRY_AFTER_S)})
        return
    await reply.begin_events()
    words = text.split(" ")
    for index, word in enumerate(words):
        await reply.event(chunk(word if index == 0 else f" {word}"))
        if text == "hang":
            await asyncio.Event().wait()
        if text == "break":
            reply.break_off()
            return
    await reply.event(chunk("", "stop"))
    usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
    await reply.event({"choices": [], "usage": usage})
    await reply.event(b"[DONE]")
    await reply.end()


def _text_asked(body: Any) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


async def _whole(body: Any, reply: Reply) -> None:
    """The same in one."""
    text, words = _text_asked(body), len(_text_asked(body).split(" "))
    function = {"name": "echo", "arguments": json.dumps({"words": f"{text} "})}
    call = {"id": "call-1", "type": "function", "function": function}
    message: Any = {"role": "assistant", "content": text}
    if "tools" in body:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    said = {"message": message} if "messages" in body else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "tool_calls" if "tools" in body else "stop"}
    usage = {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words}
    await reply.whole({"object": "whatever", "choices": [choice], "usage": usage})


async def _call(text: str, reply: Reply, chunk: Callable[..., Mapping[str, Any]]) -> None:
    """Calls the function "echo" with the words, word by word."""
    await reply.begin_events()
    named = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "echo", "arguments": '{"words": "'}}
    parts = [named, *({"index": 0, "function": {"arguments": f"{word} "}} for word in text.split(" "))]
    for part in (*parts, {"index": 0, "function": {"arguments": '"}'}}):
        event = chunk(None)
        event["choices"][0]["delta"]["tool_calls"] = [part]
        await reply.event(event)
    await reply.event(chunk(None, "tool_calls"))
    await reply.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(parts), "total_tokens": 1}})
    await reply.event(b"[DONE]")
    await reply.end()


async def gemini_answer(asked: Asked, reply: Reply) -> None:
    """Google's API: contents are streamed, embeddings tell of their text's length."""
    path, _, query = asked.path.partition("?")
    model, _, method = path.rpartition("/")[2].partition(":")
    match method:
        case "streamGenerateContent" if query == "alt=sse":
            await _generate(asked.body["contents"][-1]["parts"][-1]["text"], reply)
        case "generateContent":
            text = asked.body["contents"][-1]["parts"][-1]["text"]
            await reply.whole(gemini_chunk(text, "STOP", promptTokenCount=1, candidatesTokenCount=2))
        case "batchEmbedContents":
            texts = [each["content"]["parts"][0]["text"] for each in asked.body["requests"]]
            await reply.whole({"embeddings": [{"values": vector_of(text)} for text in texts]})
        case "":
            await reply.whole({"name": f"models/{model}", "supportedGenerationMethods": ["generateContent"]})
        case _:
            await reply.whole({"error": {"code": 404, "message": "no such method", "status": "NOT_FOUND"}}, 404)


async def _generate(text: str, reply: Reply) -> None:
    if text == "refuse":
        detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_AFTER_S}s"}
        error = {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [detail]}
        await reply.whole({"error": error}, 429)
        return
    await reply.begin_events()
    words = text.split(" ")
    for index, word in enumerate(words):
        last = index == len(words) - 1
        await reply.event(
            gemini_chunk(
                word if index == 0 else f" {word}",
                "STOP" if last else None,
                promptTokenCount=len(words),
                candidatesTokenCount=index + 1,
                thoughtsTokenCount=2,
            )
        )
        if text == "hang":
            await asyncio.Event().wait()
    await reply.end()
