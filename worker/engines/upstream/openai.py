"""OpenAI's API as vLLM, Ollama, EXO, OpenAI itself and this mesh's own gateway speak it: requests written, answers read. Pure.

Tolerates what they differ in: no usage, no `[DONE]`, first chunks with a role alone, null or absent content, a finish reason in
the last chunk alone. Where no usage comes, chunks with text are counted as its tokens. Source: OpenAI's API reference for
POST /chat/completions, /completions and /embeddings, and GET /models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from runtime.errors import InvalidArgument, UpstreamUnavailable
from runtime.model_traits import JSON, JSON_SCHEMA, LOGIT_BIAS, LOGPROBS, PENALTIES, TOOLS
from worker.engine import Array, Finish, Message, Piece, TextRequest, ToolCallPart, ToolUse
from worker.engines.upstream.api import DONE, Call
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.errors import described_error, error_in_answer
from worker.engines.upstream.json import Malformed, body_of, count_of, items_of, json_of, object_of, text_of
from worker.engines.upstream.openai_logprobs import chat_tokens, text_tokens
from worker.engines.upstream.tool_calls import sent_json, tool_calls_of
from worker.engines.upstream.vectors import base64_of, decimals_of, stacked
from worker.types import Task

MAX_TEXTS = 2048
"""OpenAI's own limit of inputs in one request."""

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {
        "stop": Finish.STOP,
        "eos": Finish.STOP,
        "tool_calls": Finish.TOOL_CALLS,
        "length": Finish.LENGTH,
        "max_tokens": Finish.LENGTH,
        "content_filter": Finish.CONTENT_FILTER,
    }
)
"""Others count as STOP."""


class OpenAi:
    """Implements `upstream_api.Api`."""

    max_texts = MAX_TEXTS
    capabilities = frozenset({TOOLS, JSON, JSON_SCHEMA, LOGPROBS, PENALTIES, LOGIT_BIAS})

    def __init__(self, config: UpstreamConfig, task: Task, secret: str = "") -> None:
        self._config = config
        self._task = task
        self._secret = secret

    def headers(self, key: str) -> Mapping[str, str]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if self._config.organisation:
            headers["openai-organization"] = self._config.organisation
        return headers

    def generation(self, request: TextRequest) -> Call:
        """A conversation goes to /chat/completions, text as it is to /completions."""
        prompt = request.prompt
        if isinstance(prompt, str):
            return Call("/completions", body_of({**self._common(request), "prompt": prompt, **_text_logprobs(request)}))
        if self._task is not Task.CHAT:
            raise InvalidArgument("this model completes text and takes no conversation; send a prompt, or ask a chat model")
        return Call(
            "/chat/completions",
            body_of({**self._common(request), **_conversation(prompt, request.tool_use), **_chat_logprobs(request)}),
        )

    def reading(self, request: TextRequest) -> OpenAiReading:
        return OpenAiReading(chat=not isinstance(request.prompt, str), secret=self._secret)

    def embedding(self, texts: Sequence[str]) -> Call:
        # base64 is a tenth of the work of decimals; who does not know it answers with decimals.
        fields = {"model": self._config.model, "input": list(texts), "encoding_format": "base64"}
        return Call("/embeddings", body_of({**fields, "dimensions": self._config.dimensions or None}))

    def vectors(self, raw: bytes, rows: int) -> Array:
        content = object_of(json_of(raw))
        found = [object_of(each) for each in items_of(content.get("data"))]
        placed = {count_of(each.get("index", place)): each.get("embedding") for place, each in enumerate(found)}
        if len(found) != rows or placed.keys() != set(range(rows)):
            raise Malformed(f"{len(found)} embeddings for {rows} texts")
        return stacked([_vector(placed[row]) for row in range(rows)])

    def models(self) -> Call:
        return Call("/models")

    def has_model(self, raw: bytes) -> bool:
        listed = [object_of(each).get("id") for each in items_of(object_of(json_of(raw)).get("data"))]
        # Ollama lists "name:latest" for what is asked for as "name".
        return self._config.model in listed or f"{self._config.model}:latest" in listed

    def _common(self, request: TextRequest) -> Mapping[str, object]:
        sampling = request.sampling
        limit = self._config.token_limit if not isinstance(request.prompt, str) else "max_tokens"
        streams = self._config.always_stream or not request.whole
        return {
            "model": self._config.model,
            "stream": True if streams else None,
            "stream_options": {"include_usage": True} if streams and self._config.include_usage else None,
            limit: request.max_tokens or None,
            "stop": list(request.stop) or None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": _signed(sampling.seed),
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "logit_bias": {str(token): bias for token, bias in request.logit_bias.items()} or None,
        }


class OpenAiReading:
    """Implements `upstream_api.Reading`."""

    def __init__(self, *, chat: bool, secret: str = "") -> None:
        self._chat = chat
        self._secret = secret
        self._finish: Finish | None = None
        self._done = False
        self._counted = 0
        self._usage: tuple[int, int] | None = None

    @property
    def finished(self) -> bool:
        return self._finish is not None

    def take(self, event: bytes) -> Piece | None:
        if event == DONE:
            self._done = True
            return None
        content = object_of(json_of(event))
        if (error := content.get("error")) is not None:
            raise error_in_answer(described_error(error), self._secret)
        if (usage := content.get("usage")) is not None:
            tokens = object_of(usage)
            self._usage = count_of(tokens.get("prompt_tokens")), count_of(tokens.get("completion_tokens"))
        choices = items_of(content.get("choices"))
        return self._choice(object_of(choices[0])) if choices else None

    def last(self) -> Piece:
        if self._finish is None and not self._done:
            raise UpstreamUnavailable("the upstream's answer ended before its end was said; retry")
        prompt_tokens, completion_tokens = self._usage or (0, self._counted)
        return Piece("", (), self._finish or Finish.STOP, prompt_tokens, completion_tokens)

    def _choice(self, choice: Mapping[str, object]) -> Piece | None:
        reason = text_of(choice.get("finish_reason"))
        if reason:
            self._finish = FINISHES.get(reason, Finish.STOP)
        calls: tuple[ToolCallPart, ...] = ()
        if not self._chat:
            text = text_of(choice.get("text"))
        elif (given := choice.get("delta", choice.get("message"))) is None:
            text = ""
        else:
            said = object_of(given)
            text = text_of(said.get("content"))
            if (called := said.get("tool_calls")) is not None:
                calls = tool_calls_of(called)
        given = choice.get("logprobs")
        logprobs = () if given is None else (chat_tokens if self._chat else text_tokens)(object_of(given))
        if not text and not logprobs and not calls:
            return None
        self._counted += len(logprobs) or 1
        return Piece(text, (), logprobs=logprobs, tool_calls=calls)


def _conversation(turns: Sequence[Message], use: ToolUse) -> Mapping[str, object]:
    """The messages, and the tools and the format that go with them."""
    fields = {
        "messages": [_turn(turn) for turn in turns],
        "tools": sent_json(use.tools_json, "tools"),
        "tool_choice": sent_json(use.choice_json, "tool_choice"),
        "parallel_tool_calls": use.parallel,
        "response_format": sent_json(use.response_format_json, "response_format"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _turn(turn: Message) -> Mapping[str, object]:
    fields: dict[str, object] = {"role": turn.role, "content": turn.content}
    if turn.name:
        fields["name"] = turn.name
    if turn.tool_calls_json:
        fields["tool_calls"] = sent_json(turn.tool_calls_json, "tool_calls")
        fields["content"] = turn.content or None
    if turn.tool_call_id:
        fields["tool_call_id"] = turn.tool_call_id
    return fields


def _chat_logprobs(request: TextRequest) -> Mapping[str, object]:
    if request.top_logprobs is None:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or None}


def _text_logprobs(request: TextRequest) -> Mapping[str, object]:
    return {"logprobs": request.top_logprobs}


def _signed(seed: int | None) -> int | None:
    """JSON's seeds are signed; ours are the same 64 bits without a sign."""
    return seed if seed is None or seed < 2**63 else seed - 2**64


def _vector(value: object) -> Array:
    return base64_of(value) if isinstance(value, str) else decimals_of(value)
