"""OpenAI's API as vLLM, Ollama, EXO, OpenAI itself and this mesh's own gateway speak it: requests written, answers read. Pure.

Tolerates what they differ in: no usage, no `[DONE]`, first chunks with a role alone, null or absent content, a finish reason in
the last chunk alone. Where no usage comes, chunks with text are counted as its tokens. Source: OpenAI's API reference for
POST /chat/completions, /completions and /embeddings, and GET /models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from runtime.errors import InvalidArgument, UpstreamUnavailable
from worker.engine import Array, Finish, Logprob, Message, Piece, TextRequest, TokenLogprob
from worker.engines.upstream.api import DONE, Call
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.errors import UpstreamWithheld, described_error, error_in_answer
from worker.engines.upstream.json import Malformed, body_of, count_of, items_of, json_of, number_of, object_of, text_of
from worker.engines.upstream.vectors import base64_of, decimals_of, stacked
from worker.types import Task

MAX_TEXTS = 2048
"""OpenAI's own limit of inputs in one request."""

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {
        "stop": Finish.STOP,
        "eos": Finish.STOP,
        "tool_calls": Finish.STOP,
        "function_call": Finish.STOP,
        "length": Finish.LENGTH,
        "max_tokens": Finish.LENGTH,
    }
)
"""Others count as STOP. But `content_filter` is a failure, so that nobody takes half an answer for a whole one."""

_WITHHELD = "content_filter"


class OpenAi:
    """Implements `upstream_api.Api`."""

    max_texts = MAX_TEXTS

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
            body_of({**self._common(request), "messages": _messages(prompt), **_chat_logprobs(request)}),
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
        return {
            "model": self._config.model,
            "stream": True,
            "stream_options": {"include_usage": True} if self._config.include_usage else None,
            limit: request.max_tokens or None,
            "stop": list(request.stop) or None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": _signed(sampling.seed),
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "repetition_penalty": sampling.repetition_penalty,
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
        if reason == _WITHHELD:
            raise UpstreamWithheld("the upstream's content filter ended the answer; change the request")
        if reason:
            self._finish = FINISHES.get(reason, Finish.STOP)
        if self._chat:
            delta = choice.get("delta")
            text = text_of(object_of(delta).get("content")) if delta is not None else ""
        else:
            text = text_of(choice.get("text"))
        given = choice.get("logprobs")
        logprobs = () if given is None else (_chat_tokens if self._chat else _text_tokens)(object_of(given))
        if not text and not logprobs:
            return None
        self._counted += len(logprobs) or 1
        return Piece(text, (), logprobs=logprobs)


def _messages(turns: Sequence[Message]) -> list[Mapping[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _chat_logprobs(request: TextRequest) -> Mapping[str, object]:
    if request.top_logprobs is None:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or None}


def _text_logprobs(request: TextRequest) -> Mapping[str, object]:
    return {"logprobs": request.top_logprobs}


def _signed(seed: int | None) -> int | None:
    """JSON's seeds are signed; ours are the same 64 bits without a sign."""
    return seed if seed is None or seed < 2**63 else seed - 2**64


def _chat_tokens(logprobs: Mapping[str, object]) -> tuple[TokenLogprob, ...]:
    tokens = (object_of(each) for each in items_of(logprobs.get("content")))
    return tuple(
        TokenLogprob(_logprob(token), tuple(_logprob(object_of(each)) for each in items_of(token.get("top_logprobs"))))
        for token in tokens
    )


def _logprob(token: Mapping[str, object]) -> Logprob:
    """An upstream's token ids are its own and stay there: 0 stands for all of them."""
    text, given = text_of(token.get("token")), token.get("bytes")
    try:
        raw = text.encode(errors="replace") if given is None else bytes(int(number_of(each)) for each in items_of(given))
    except ValueError as error:
        raise Malformed("a token's bytes that are none") from error
    return Logprob(0, raw, number_of(token.get("logprob")))


def _text_tokens(logprobs: Mapping[str, object]) -> tuple[TokenLogprob, ...]:
    """/completions lists tokens, their log probabilities and tables of the likeliest side by side."""
    tokens, values = items_of(logprobs.get("tokens")), items_of(logprobs.get("token_logprobs"))
    if len(tokens) != len(values):
        raise Malformed(f"{len(values)} log probabilities for {len(tokens)} tokens")
    tops = items_of(logprobs.get("top_logprobs")) or [None] * len(tokens)
    return tuple(
        TokenLogprob(Logprob(0, text_of(token).encode(errors="replace"), number_of(value)), _table(top))
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _table(top: object) -> tuple[Logprob, ...]:
    if top is None:
        return ()
    entries = [Logprob(0, token.encode(errors="replace"), number_of(value)) for token, value in object_of(top).items()]
    return tuple(sorted(entries, key=lambda entry: -entry.logprob))


def _vector(value: object) -> Array:
    return base64_of(value) if isinstance(value, str) else decimals_of(value)
