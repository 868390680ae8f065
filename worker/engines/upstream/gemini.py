"""Google's Gemini API: requests written, answers read. Pure.

Turns of one role that follow each other become one; every system turn becomes part of the system instruction. Thoughts count as
tokens and are not shown. Source: the API reference at ai.google.dev: models.streamGenerateContent (with alt=sse),
models.batchEmbedContents, models.get; GenerationConfig, Candidate, FinishReason, UsageMetadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from runtime.errors import InvalidArgument, UpstreamUnavailable
from runtime.model_traits import JSON, JSON_SCHEMA, LOGPROBS, PENALTIES, TOOLS
from worker.engine import Array, Finish, Logprob, Message, Piece, TextRequest, TokenLogprob
from worker.engines.upstream.api import Call
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.errors import UpstreamWithheld, described_error, error_in_answer, shown
from worker.engines.upstream.gemini_tools import call_part, called_names, format_fields, parts_of, tool_fields
from worker.engines.upstream.json import Malformed, body_of, count_of, items_of, json_of, number_of, object_of, text_of
from worker.engines.upstream.vectors import decimals_of, stacked

MAX_TEXTS = 100
"""What batchEmbedContents takes."""

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {
        "STOP": Finish.STOP,
        "MAX_TOKENS": Finish.LENGTH,
        **dict.fromkeys(
            ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY"),
            Finish.CONTENT_FILTER,
        ),
    }
)
"""Every other reason (MALFORMED_FUNCTION_CALL, OTHER, …) means that the rest of the answer is missing, and so a failure."""

_ROLES: Mapping[str, str] = MappingProxyType({"user": "user", "assistant": "model", "model": "model", "tool": "user"})
_SYSTEM = ("system", "developer")


class Gemini:
    """Implements `upstream_api.Api`."""

    max_texts = MAX_TEXTS
    capabilities = frozenset({TOOLS, JSON, JSON_SCHEMA, LOGPROBS, PENALTIES})

    def __init__(self, config: UpstreamConfig, secret: str = "") -> None:
        self._config = config
        self._secret = secret
        self._name = config.model if "/" in config.model else f"models/{config.model}"

    def headers(self, key: str) -> Mapping[str, str]:
        """In a header and not in the address, which proxies and servers log."""
        return {"x-goog-api-key": key} if key else {}

    def generation(self, request: TextRequest) -> Call:
        turns = (Message("user", request.prompt),) if isinstance(request.prompt, str) else request.prompt
        contents = _contents(turns)
        if not contents:
            raise InvalidArgument("the conversation has no turn of a user or an assistant; Gemini needs one")
        system = [{"text": turn.content} for turn in turns if turn.role in _SYSTEM]
        return Call(
            f"/{self._name}:generateContent"
            if request.whole and not self._config.always_stream
            else f"/{self._name}:streamGenerateContent?alt=sse",
            body_of(
                {
                    "contents": contents,
                    "systemInstruction": {"parts": system} if system else None,
                    "generationConfig": {**_settings(request), **format_fields(request.tool_use)} or None,
                    **tool_fields(request.tool_use),
                }
            ),
        )

    def reading(self, request: TextRequest) -> GeminiReading:
        return GeminiReading(self._secret)

    def embedding(self, texts: Sequence[str]) -> Call:
        size = {"outputDimensionality": self._config.dimensions} if self._config.dimensions else {}
        requests = [{"model": self._name, "content": {"parts": [{"text": text}]}, **size} for text in texts]
        return Call(f"/{self._name}:batchEmbedContents", body_of({"requests": requests}))

    def vectors(self, raw: bytes, rows: int) -> Array:
        found = items_of(object_of(json_of(raw)).get("embeddings"))
        if len(found) != rows:
            raise Malformed(f"{len(found)} embeddings for {rows} texts")
        return stacked([decimals_of(object_of(each).get("values")) for each in found])

    def models(self) -> Call:
        return Call(f"/{self._name}")

    def has_model(self, raw: bytes) -> bool:
        return text_of(object_of(json_of(raw)).get("name")) == self._name


class GeminiReading:
    """Implements `upstream_api.Reading`. There is no last event: the stream's end is the end."""

    def __init__(self, secret: str = "") -> None:
        self._secret = secret
        self._finish: Finish | None = None
        self._counted = 0
        self._calls = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0

    @property
    def finished(self) -> bool:
        return self._finish is not None

    def take(self, event: bytes) -> Piece | None:
        content = object_of(json_of(event))
        if (error := content.get("error")) is not None:
            raise error_in_answer(described_error(error), self._secret)
        feedback = content.get("promptFeedback")
        if feedback is not None and (reason := text_of(object_of(feedback).get("blockReason"))):
            raise UpstreamWithheld(f"the upstream blocked the prompt ({shown(reason)[:40]}); change the request")
        if (usage := content.get("usageMetadata")) is not None:
            self._count(object_of(usage))
        candidates = items_of(content.get("candidates"))
        return self._candidate(object_of(candidates[0])) if candidates else None

    def last(self) -> Piece:
        if self._finish is None:
            raise UpstreamUnavailable("the upstream's answer ended before its end was said; retry")
        called = self._calls and self._finish is Finish.STOP
        finish = Finish.TOOL_CALLS if called else self._finish
        return Piece("", (), finish, self._prompt_tokens, self._completion_tokens or self._counted)

    def _count(self, usage: Mapping[str, object]) -> None:
        """Each event's numbers are those so far. Thoughts are generated and paid for like the rest."""
        self._prompt_tokens = count_of(usage.get("promptTokenCount"))
        self._completion_tokens = count_of(usage.get("candidatesTokenCount")) + count_of(usage.get("thoughtsTokenCount"))

    def _candidate(self, candidate: Mapping[str, object]) -> Piece | None:
        reason = text_of(candidate.get("finishReason"))
        if reason and reason not in FINISHES and reason != "FINISH_REASON_UNSPECIFIED":
            raise UpstreamWithheld(f"the upstream withheld the rest of the answer ({shown(reason)[:40]}); change the request")
        self._finish = FINISHES.get(reason, self._finish)
        parts, logprobs = _parts(candidate.get("content")), _logprobs(candidate.get("logprobsResult"))
        text = "".join(text_of(part.get("text")) for part in parts if part.get("thought") is not True)
        called = [part["functionCall"] for part in parts if part.get("functionCall") is not None]
        if not text and not logprobs and not called:
            return None
        self._counted += len(logprobs) or 1
        calls = tuple(call_part(each, self._calls + place) for place, each in enumerate(called))
        self._calls += len(calls)
        return Piece(text, (), logprobs=logprobs, tool_calls=calls)


def _contents(turns: Sequence[Message]) -> list[Mapping[str, object]]:
    spoken = [turn for turn in turns if turn.role not in _SYSTEM]
    for turn in spoken:
        if turn.role not in _ROLES:
            raise InvalidArgument(f"role {turn.role[:40]!r} is none that Gemini knows; send system, user, assistant or tool")
    names = called_names(spoken)
    return [
        {"role": role, "parts": [part for turn in group for part in parts_of(turn, names)]}
        for role, group in groupby(spoken, key=lambda turn: _ROLES[turn.role])
    ]


def _settings(request: TextRequest) -> Mapping[str, object]:
    sampling = request.sampling
    if sampling.repetition_penalty is not None:
        raise InvalidArgument("'repetition_penalty' means nothing to Gemini; leave it out, or use frequency_penalty")
    if request.logit_bias:
        raise InvalidArgument("'logit_bias' means nothing to Gemini; leave it out")
    settings: Mapping[str, object] = {
        "maxOutputTokens": request.max_tokens or None,
        "stopSequences": list(request.stop) or None,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        # Its seeds have 31 bits; the same seed of ours is always the same one there.
        "seed": None if sampling.seed is None else sampling.seed % 2**31,
        "frequencyPenalty": sampling.frequency_penalty,
        "presencePenalty": sampling.presence_penalty,
        "responseLogprobs": True if request.top_logprobs is not None else None,
        "logprobs": request.top_logprobs or None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _parts(content: object) -> list[Mapping[str, object]]:
    return [] if content is None else [object_of(part) for part in items_of(object_of(content).get("parts"))]


def _logprobs(result: object) -> tuple[TokenLogprob, ...]:
    if result is None:
        return ()
    chosen = [_logprob(each) for each in items_of(object_of(result).get("chosenCandidates"))]
    tops = [
        tuple(_logprob(each) for each in items_of(object_of(step).get("candidates")))
        for step in items_of(object_of(result).get("topCandidates"))
    ]
    return tuple(TokenLogprob(token, tops[place] if place < len(tops) else ()) for place, token in enumerate(chosen))


def _logprob(value: object) -> Logprob:
    """An upstream's token ids are its own and stay there: 0 stands for all of them."""
    candidate = object_of(value)
    return Logprob(0, text_of(candidate.get("token")).encode(errors="replace"), number_of(candidate.get("logProbability")))
