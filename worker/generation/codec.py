"""Generation messages, to and from the worker's own nouns. Tensors have a codec of their own, `kserve/codec.py`."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument
from worker.engine import NO_TOOLS, Finish, Logprob, Message, Piece, Sampling, TextRequest, ToolUse

_FINISHES = {
    None: worker_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: worker_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: worker_pb2.FINISH_REASON_LENGTH,
    Finish.TOOL_CALLS: worker_pb2.FINISH_REASON_TOOL_CALLS,
    Finish.CONTENT_FILTER: worker_pb2.FINISH_REASON_CONTENT_FILTER,
}


def parse_generate(payload: bytes) -> tuple[str, TextRequest]:
    """The model asked for and the request. Raises InvalidArgument."""
    try:
        message = worker_pb2.GenerateRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"the {len(payload)} bytes received are no penstock.worker.v1.GenerateRequest") from error
    kind = message.WhichOneof("input")
    if kind is None:
        raise InvalidArgument("the request has neither a prompt nor a chat; set one of them")
    prompt: str | tuple[Message, ...] = message.prompt
    if kind == "chat":
        prompt = tuple(map(_message, message.chat.messages))
    sampling = message.sampling
    return message.model, TextRequest(
        prompt=prompt,
        sampling=Sampling(
            temperature=sampling.temperature if sampling.HasField("temperature") else None,
            top_p=sampling.top_p if sampling.HasField("top_p") else None,
            top_k=sampling.top_k if sampling.HasField("top_k") else None,
            seed=sampling.seed if sampling.HasField("seed") else None,
            frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
            presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else None,
        ),
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        resume_token_ids=tuple(message.resume_token_ids),
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        logit_bias=dict(message.logit_bias),
        tool_use=_tool_use(message),
        whole=message.whole,
    )


def _message(turn: worker_pb2.ChatMessage) -> Message:
    return Message(turn.role, turn.content, turn.name, turn.tool_calls_json, turn.tool_call_id)


def _tool_use(message: worker_pb2.GenerateRequest) -> ToolUse:
    if not (message.tools_json or message.response_format_json):
        return NO_TOOLS
    parallel = message.parallel_tool_calls if message.HasField("parallel_tool_calls") else None
    return ToolUse(message.tools_json, message.tool_choice_json, parallel, message.response_format_json)


def generate_response(piece: Piece) -> bytes:
    """A serialised GenerateResponse; usage only where the generation ends."""
    response = worker_pb2.GenerateResponse(text=piece.text, token_ids=piece.token_ids, finish_reason=_FINISHES[piece.finish])
    for each in piece.logprobs:
        response.logprobs.add(chosen=_logprob(each.chosen), top=map(_logprob, each.top))
    for part in piece.tool_calls:
        response.tool_calls.add(index=part.place, id=part.call_id, name=part.name, arguments=part.arguments)
    if piece.finish is not None:
        response.usage.prompt_tokens = piece.prompt_tokens
        response.usage.completion_tokens = piece.completion_tokens
    return response.SerializeToString()


def _logprob(logprob: Logprob) -> worker_pb2.Logprob:
    return worker_pb2.Logprob(token_id=logprob.token_id, token=logprob.token, logprob=logprob.logprob)
