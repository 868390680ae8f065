"""Text from the fleet: one request routed, its answer in pieces. Decides whether a model is for it; owns nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.links.types import CallContext, Method
from gateway.openai.codec import generate_request, piece_of
from gateway.openai.errors import AnswerCutShort, RequestRefused
from gateway.openai.types import Fleet, Piece, Router, Style, TextAsked
from gateway.routing import unknown_model
from placement.types import Request
from runtime.ids import ModelName, ModelVersion

_TASKS = {Style.CHAT: ("chat",), Style.COMPLETION: ("completion", "chat")}
_ADVICE = {
    "chat": "POST /v1/chat/completions is for it",
    "completion": "POST /v1/completions is for it",
    "embedding": "POST /v1/embeddings is for it",
    "tensor": "it is asked over gRPC, inference.GRPCInferenceService/ModelInfer",
}


def check_task(fleet: Fleet, model: str, version: str, tasks: tuple[str, ...]) -> None:
    """Raises ModelUnknown, and RequestRefused for a model that is for something else. What is not known yet passes."""
    copies = fleet.copies(model, version)
    if not copies:
        if fleet.synced and not fleet.placed(model, version):
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


async def pieces(
    router: Router,
    asked: TextAsked,
    version: ModelVersion,
    call: CallContext,
    on_granted: Callable[[ModelVersion], None] | None = None,
) -> AsyncGenerator[Piece, None]:
    """The answer as it comes, up to its last piece. Close it when leaving early. Raises as the router, and AnswerCutShort."""
    request = Request(ModelName(asked.model), version, session_key=session_of(asked, call.tenant))
    streaming = router.stream(Method.GENERATE, request, generate_request(asked), call, on_granted)
    async with aclosing(streaming) as answers:
        async for answer in answers:
            piece = piece_of(answer)
            yield piece
            if piece.finish is not None:
                return
    raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")
