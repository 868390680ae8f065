"""`penstock chat`: a conversation over the OpenAI API, printed token by token."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from rich.console import Console

from cli.profile import NoMesh, Profile
from runtime.errors import Unavailable, error_from_wire

_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 503: 14, 504: 4}
_Messages = list[dict[str, str]]


async def converse(profile: Profile, model: str, prompt: str | None, sampling: Mapping[str, Any]) -> None:
    """One question and its answer; without a prompt, until the person ends it with Ctrl-D."""
    if not profile.http_url:
        raise NoMesh("this mesh has no HTTP address; start it with Envoy, or pass --url")
    async with httpx.AsyncClient(base_url=profile.http_url, headers=dict(profile.metadata), timeout=120) as client:
        messages: _Messages = []
        while (question := prompt if prompt is not None else _ask()) is not None:
            messages.append({"role": "user", "content": question})
            answer = await _answer(client, {"model": model, "messages": messages, **sampling})
            messages.append({"role": "assistant", "content": answer})
            if prompt is not None:
                return


async def _answer(client: httpx.AsyncClient, request: dict[str, Any]) -> str:
    console, whole = Console(highlight=False), ""
    async for piece in pieces(client, request):
        console.print(piece, end="", markup=False, soft_wrap=True)
        whole += piece
    console.print()
    return whole


async def pieces(client: httpx.AsyncClient, request: dict[str, Any]) -> AsyncIterator[str]:
    """The answer's text as it arrives. Raises what the mesh answered."""
    try:
        async with client.stream("POST", "/v1/chat/completions", json={**request, "stream": True}) as response:
            if response.status_code != httpx.codes.OK:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise Unavailable(str(event["error"].get("message", "the answer broke off")))
                    for choice in event["choices"]:
                        yield choice["delta"].get("content") or ""
    except httpx.TransportError as error:
        raise Unavailable(f"{client.base_url} does not answer ({error}); is the mesh up? `penstock up` starts one") from error


def _refusal(status: int, body: bytes) -> Exception:
    try:
        sentence = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        sentence = f"HTTP {status}"
    return error_from_wire(_CODES.get(status, 13), "", sentence)


def _ask() -> str | None:
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip() or None
    try:
        return input("> ").strip() or None
    except EOFError:
        return None
