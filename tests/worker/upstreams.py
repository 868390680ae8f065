"""Upstream models for tests: their files, specs and open engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.upstream_server import Asked, Reply
from tests.worker.onnx_models import spec
from worker.engine import Finish, Message, Piece, TextRequest
from worker.engines.upstream.engine import UpstreamEngine, open_upstream
from worker.remote.upstream_keys import UpstreamAccess
from worker.types import ModelSpec, Task, TensorSpec

KEY = "sk-very-secret"
TEXT = (TensorSpec("text_input", "BYTES", (1,)),)
SAID = (TensorSpec("text_output", "BYTES", (1,)),)


def chat_spec(task: Task = Task.CHAT, **other: Any) -> ModelSpec:
    return spec("echo", engine="upstream", task=task, inputs=TEXT, outputs=SAID, max_batch_size=0, decoupled=True, **other)


def embedding_spec(width: int = 3, **other: Any) -> ModelSpec:
    outputs = (TensorSpec("vector", "FP32", (width,)),)
    return spec("vectors", engine="upstream", task=Task.EMBEDDING, inputs=TEXT, outputs=outputs, **other)


def write(folder: Path, url: str, *, api: str = "openai", **fields: Any) -> Path:
    """The folder with an upstream.toml; `timeouts` and `headers` are tables."""
    path = "/v1" if api == "openai" else "/v1beta"
    top = {"api": api, "base_url": f"{url}{path}", "model": "echo"}
    tables = {name: fields.pop(name) for name in ("timeouts", "headers") if name in fields}
    lines = [f"{name} = {_toml(value)}" for name, value in {**top, **fields}.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "upstream.toml").write_text("\n".join(lines) + "\n")
    return folder


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@asynccontextmanager
async def opened(
    folder: Path, url: str, *, task: Task = Task.CHAT, access: UpstreamAccess | None = None, **fields: Any
) -> AsyncIterator[UpstreamEngine]:
    """An engine on this upstream."""
    engine = open_upstream(chat_spec(task), write(folder, url, **fields), access)
    try:
        yield engine
    finally:
        await engine.aclose()


def chat(text: str, **other: Any) -> TextRequest:
    return TextRequest((Message("user", text),), **other)


async def said(engine: UpstreamEngine, request: TextRequest, deadline_s: float | None = None) -> list[Piece]:
    return [piece async for piece in engine.generate(request, deadline_s=deadline_s)]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def end_of(pieces: Sequence[Piece]) -> tuple[Finish | None, int, int]:
    return pieces[-1].finish, pieces[-1].prompt_tokens, pieces[-1].completion_tokens


def with_key(folder: Path) -> UpstreamAccess:
    file = folder / "keys.toml"
    file.write_text(f'[mine]\nkey = "{KEY}"\nhosts = ["127.0.0.1"]\n')
    file.chmod(0o600)
    return UpstreamAccess(file)


def events(*contents: object, end: bool = True) -> Callable[[Asked, Reply], Awaitable[None]]:
    """Answers with these events; bytes go out as they are."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.begin_events()
        for content in contents:
            await (reply.part(content) if isinstance(content, bytes) else reply.event(content))
        if end:
            await reply.end()
        else:
            await asyncio.Event().wait()

    return answer


def refusal(status: int, content: object = None, **headers: str) -> Callable[[Asked, Reply], Awaitable[None]]:
    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.whole(content, status, {name.replace("_", "-"): value for name, value in headers.items()})

    return answer
