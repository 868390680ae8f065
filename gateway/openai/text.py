"""Text from the fleet: a request's generations routed, their answers in pieces. Decides whether a model is for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway.exchange import Exchange
from gateway.links.types import CallContext, Method
from gateway.openai.capabilities import check_capabilities
from gateway.openai.choices import merged
from gateway.openai.codec import generate_request, piece_of
from gateway.openai.errors import AnswerCutShort, RequestRefused
from gateway.openai.pieces import Piece, Usage
from gateway.openai.types import Dispatch, Fleet, Prompt, Style, TextAsked
from gateway.refusals import unknown_model
from placement.routing.prefixes import BLOCK_BYTES, MAX_BLOCKS, hashes_of
from placement.types import ANY_REGION, Request
from runtime.ids import ModelName, ModelVersion, Region

TASKS = {Style.CHAT: ("chat",), Style.COMPLETION: ("completion", "chat")}
_ADVICE = {
    "chat": "POST /v1/chat/completions is for it",
    "completion": "POST /v1/completions is for it",
    "embedding": "POST /v1/embeddings is for it",
    "tensor": "it is asked over gRPC, inference.GRPCInferenceService/ModelInfer",
}

AT_ONCE = 16
"""Generations of one request that run together; the others wait for one to end."""

_PREFIX_CHARACTERS = BLOCK_BYTES * MAX_BLOCKS


def check_task(fleet: Fleet, model: str, version: str, tasks: tuple[str, ...]) -> None:
    """Raises ModelUnknown, and RequestRefused for a model that is for something else. What is not known yet passes."""
    copies = [pair for pair in fleet.view.copies_of(ModelName(model)) if version in ("", pair[1].version)]
    if not copies:
        elsewhere = fleet.regions_with(model)  # whether requests may go there is the router's to say
        if fleet.synced and not elsewhere and not fleet.placed(model, version):
            raise unknown_model(model, version)
        return
    found = {copy.task for _, copy in copies}
    if found.isdisjoint(tasks):
        task = min(found)
        advice = _ADVICE.get(task, "another call is for it")
        raise RequestRefused(
            f"model {model!r} has task {task!r}, this call needs {' or '.join(tasks)}; {advice}",
            param="model",
            fault="unsupported_model",
        )


def check_text(fleet: Fleet, style: Style, asked: TextAsked, version: str) -> None:
    """Raises like `check_task`, and RequestRefused for what the model cannot do."""
    check_task(fleet, asked.model, version, TASKS[style])
    if asked.needs:
        copies = fleet.view.copies_of(ModelName(asked.model))
        check_capabilities(asked.model, asked.needs, (copy for _, copy in copies if version in ("", copy.version)))


def session_of(asked: TextAsked, tenant: str) -> str:
    """Conversations of different tenants are different ones, whatever they are called."""
    return f"{tenant}/{asked.session_key}" if asked.session_key else ""


def prefix_of(prompt: Prompt, model: str, tenant: str) -> tuple[int, ...]:
    """The beginning of a prompt or conversation as hashes, by which a worker is found that has computed it already."""
    return hashes_of(_beginning(prompt), salt=f"{tenant}\0{model}")


def answers(
    dispatch: Dispatch,
    asked: TextAsked,
    version: ModelVersion,
    call: CallContext,
    exchange: Exchange,
    region: Region = ANY_REGION,
) -> AsyncGenerator[Piece, None]:
    """The pieces of all choices as they come, up to the last one's last. Close it when leaving early. Raises like `pieces`.

    `region`: where the request is routed from; any: the gateway's own.
    """
    if asked.choices == 1:
        return pieces(dispatch, asked, 0, version, call, exchange, region)
    return merged(
        [pieces(dispatch, asked, choice, version, call, exchange, region) for choice in range(asked.choices)], AT_ONCE
    )


async def pieces(
    dispatch: Dispatch,
    asked: TextAsked,
    choice: int,
    version: ModelVersion,
    call: CallContext,
    exchange: Exchange,
    region: Region,
) -> AsyncGenerator[Piece, None]:
    """One choice as it comes, up to its last piece. Raises as the dispatch, and AnswerCutShort."""
    place, of_prompt = divmod(choice, asked.n)
    plain = asked.top_logprobs is None and not asked.tool_use.tools_json
    session, prefix = session_of(asked, call.tenant), prefix_of(asked.prompts[place], asked.model, call.tenant)
    request = Request(ModelName(asked.model), version, region, session, prefix=prefix)
    streaming = dispatch.stream(Method.GENERATE, request, generate_request(asked, choice), call, exchange)
    async with aclosing(streaming) as given:
        async for answer in given:
            piece = piece_of(answer, choice, plain=plain)
            exchange.answering(len(answer))
            if piece.finish is not None:
                if of_prompt:  # a prompt counts once, however many answers it gets
                    piece.usage = Usage(0, piece.usage.completion_tokens)
                exchange.used(piece.usage.prompt_tokens, piece.usage.completion_tokens)
                yield piece
                return
            yield piece
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")


def _beginning(prompt: Prompt) -> str:
    """As much of it as is hashed, with roles: how a model's template puts them together is the same for all its prompts."""
    if isinstance(prompt, str):
        return prompt[:_PREFIX_CHARACTERS]
    rendered, room = [], _PREFIX_CHARACTERS
    for turn in prompt:
        if room <= 0:
            break
        rendered.append(f"{turn.role}\0{turn.content[:room]}\0")
        room -= len(rendered[-1])
    return "".join(rendered)
