"""Text from the fleet: one request routed, its answer in pieces. Decides whether a model is for it; owns nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.links.types import CallContext, Method
from gateway.openai.codec import generate_request, piece_of
from gateway.openai.errors import AnswerCutShort, RequestRefused
from gateway.openai.types import Fleet, Piece, Router, Style, TextAsked, Turn
from gateway.refusals import unknown_model
from placement.routing.prefixes import BLOCK_BYTES, MAX_BLOCKS, hashes_of
from placement.types import ANY_REGION, Request
from runtime.ids import ModelName, ModelVersion, Region

_TASKS = {Style.CHAT: ("chat",), Style.COMPLETION: ("completion", "chat")}
_ADVICE = {
    "chat": "POST /v1/chat/completions is for it",
    "completion": "POST /v1/completions is for it",
    "embedding": "POST /v1/embeddings is for it",
    "tensor": "it is asked over gRPC, inference.GRPCInferenceService/ModelInfer",
}

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


def check_text(fleet: Fleet, style: Style, model: str, version: str) -> None:
    """Raises like `check_task`."""
    check_task(fleet, model, version, _TASKS[style])


def session_of(asked: TextAsked, tenant: str) -> str:
    """Conversations of different tenants are different ones, whatever they are called."""
    return f"{tenant}/{asked.session_key}" if asked.session_key else ""


def prefix_of(asked: TextAsked, tenant: str) -> tuple[int, ...]:
    """The beginning of a prompt or conversation as hashes, by which a worker is found that has computed it already."""
    return hashes_of(_beginning(asked.prompt), salt=f"{tenant}\0{asked.model}")


async def pieces(
    router: Router,
    asked: TextAsked,
    version: ModelVersion,
    call: CallContext,
    on_granted: Callable[[ModelVersion], None] | None = None,
    region: Region = ANY_REGION,
) -> AsyncGenerator[Piece, None]:
    """The answer as it comes, up to its last piece. Close it when leaving early. Raises as the router, and AnswerCutShort.

    `region`: where the request is routed from; any: the gateway's own.
    """
    session, prefix = session_of(asked, call.tenant), prefix_of(asked, call.tenant)
    request = Request(ModelName(asked.model), version, region, session, prefix=prefix)
    streaming = router.stream(Method.GENERATE, request, generate_request(asked), call, on_granted)
    async with aclosing(streaming) as answers:
        async for answer in answers:
            piece = piece_of(answer)
            yield piece
            if piece.finish is not None:
                return
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")


def _beginning(prompt: str | tuple[Turn, ...]) -> str:
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
