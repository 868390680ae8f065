"""Language models: prompts in, text out, in batches that generations join and leave at every step.

Owns what all generations of a model share: its limits, its tokenizer, the slots of its decoder, and who takes part in a step.
The decoder is `onnx_decoder.py`'s where the folder allows it, else `genai_decoder.py`'s. Parameters of a manifest it reads:
`device` (cpu, cuda, cuda:0), `decoder` (auto, onnx, genai), `context_length`, `max_tokens_default`, `max_generations`,
`intra_op_threads`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog

from runtime.errors import ContextExceeded, InvalidArgument, PenstockError
from runtime.model_traits import LOGIT_BIAS, LOGPROBS, PENALTIES, RESUME
from worker.engine import (
    EngineFailed,
    EngineUnavailable,
    Finish,
    Generation,
    ModelRefused,
    Piece,
    TextRequest,
)
from worker.engines.described import choice as one_of
from worker.engines.described import cuda_device, first_line, number, threads
from worker.engines.llm.continuation import NO_SLOT, Continuation
from worker.engines.llm.decoder import Decoder
from worker.engines.llm.genai_decoder import open_genai_decoder
from worker.engines.llm.genai_folder import GenaiFolder, read_genai_folder
from worker.engines.llm.onnx_decoder import UnsuitableGraph, open_onnx_decoder
from worker.engines.llm.sampling import MAX_TOP_LOGPROBS, Choice, Sampler, check_bias, check_sampling, choice
from worker.engines.llm.tokens import Tokens, open_tokens
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.engine.llm")

DEFAULT_GENERATIONS = 8
_MOST_GENERATIONS = 1024
_MOST_THREADS_BY_DEFAULT = 16
_CAPABILITIES = frozenset({LOGPROBS, PENALTIES, LOGIT_BIAS, RESUME})
_MAX_STOPS = 16
_MAX_STOP_LETTERS = 1024

Answer = Piece | PenstockError | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model's folder and its manifest say about its answers, in tokens."""

    context_length: int
    answer_tokens: int
    """Where the request does not say; 0 = what the context leaves."""
    ends: frozenset[int]
    default: Choice


class LlmEngine:
    """A `TextEngine` over any `Decoder`."""

    def __init__(self, spec: ModelSpec, decoder: Decoder, tokens: Tokens, limits: Limits) -> None:
        self.slots = decoder.slots
        self.capabilities, self.context_tokens = _CAPABILITIES, limits.context_length
        self._spec = spec
        self._decoder = decoder
        self._tokens = tokens
        self._limits = limits
        self._free = list(range(decoder.slots))

    def begin(self, request: TextRequest) -> Generation:
        """Tokenize and check the limits. Raises InvalidArgument naming the numbers."""
        self._check(request)
        if (least := self._tokens.least(request.prompt)) > self._limits.context_length:
            raise self._too_long(f"at least {least}")
        prompt = self._tokens.encode(request.prompt)
        if not prompt:
            raise InvalidArgument("the prompt is empty; send at least one token")
        budget = self._budget(len(prompt), request)
        chosen = choice(request.sampling, self._limits.default)
        return Continuation(
            request,
            prompt,
            budget,
            sampler=Sampler(chosen, request.sampling.seed, prompt, request.resume_token_ids, request.logit_bias),
            tokens=self._tokens,
            ends=self._limits.ends,
            release=self._release,
        )

    def step(self, generations: Sequence[Generation]) -> Sequence[Answer]:
        """The next token of each whose prompt is computed, then a bounded part of the prompts of those who come."""
        ours = cast("Sequence[Continuation]", generations)  # `begin` makes no other
        answers: dict[Continuation, Answer] = {}
        going, coming = [], []
        for each in ours:
            if each.exhausted:  # it was resumed with all it may have
                answers[each] = each.end(Finish.LENGTH)
            elif each.slot != NO_SLOT and len(each.uncomputed) == 1:
                going.append(each)
            else:
                coming.append(each)
        if going:
            answers |= self._go_on(going)
        if coming:
            answers |= self._come(coming)
        return [answers.get(each) for each in ours]

    def close(self) -> None:
        self._decoder.close()

    def _go_on(self, going: Sequence[Continuation]) -> dict[Continuation, Answer]:
        try:
            rows = self._decoder.step([each.slot for each in going], [each.uncomputed[0] for each in going])
        except Exception as error:
            return dict.fromkeys(going, _failed(error))
        return {each: _advanced(each, logits) for each, logits in zip(going, rows, strict=True)}

    def _come(self, coming: Sequence[Continuation]) -> dict[Continuation, Answer]:
        """First come, first computed. A step computes a bounded part of prompts, so that those who go on need not wait long."""
        answers: dict[Continuation, Answer] = {}
        left = self._decoder.part_tokens
        for each in coming:
            part = each.uncomputed[:left]
            try:
                logits = self._extend(each, part)
            except Exception as error:
                answers[each] = _failed(error)
                continue
            each.uncomputed = each.uncomputed[len(part) :]
            if not each.uncomputed:
                answers[each] = _advanced(each, logits)
            left -= len(part)
            if left <= 0:
                break
        return answers

    def _extend(self, each: Continuation, part: Sequence[int]) -> Any:
        if each.slot == NO_SLOT:
            if not self._free:
                raise EngineFailed(f"all {self.slots} places of model {self._spec.model!r} are taken; this is a bug")
            each.slot = min(self._free)
            self._free.remove(each.slot)
            self._decoder.begin(each.slot, each.most_tokens)
        return self._decoder.extend(each.slot, part)

    def _release(self, each: Continuation) -> None:
        if each.slot != NO_SLOT:
            self._decoder.end(each.slot)
            self._free.append(each.slot)
            each.slot = NO_SLOT

    def _check(self, request: TextRequest) -> None:
        check_sampling(request.sampling)
        check_bias(request.logit_bias, self._decoder.vocabulary)
        if len(request.stop) > _MAX_STOPS or any(not stop for stop in request.stop):
            raise InvalidArgument(f"{len(request.stop)} stop strings were given; at most {_MAX_STOPS}, none of them empty")
        if (longest := max(map(len, request.stop), default=0)) > _MAX_STOP_LETTERS:
            raise InvalidArgument(f"a stop string has {longest} letters; up to {_MAX_STOP_LETTERS} are taken")
        if any(not 0 <= token < self._decoder.vocabulary for token in request.resume_token_ids):
            raise InvalidArgument(f"a token to resume after is outside of this model's {self._decoder.vocabulary} tokens")
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidArgument(f"{request.top_logprobs} log probabilities a token were asked for; up to {MAX_TOP_LOGPROBS}")

    def _too_long(self, tokens: str) -> ContextExceeded:
        return ContextExceeded(
            f"the prompt has {tokens} tokens; model {self._spec.model!r} has a context of"
            f" {self._limits.context_length} tokens, of which at least one is for the answer"
        )

    def _budget(self, prompt_tokens: int, request: TextRequest) -> int:
        """How many tokens may be generated, resumed ones included."""
        left = self._limits.context_length - prompt_tokens
        if left < 1:
            raise self._too_long(str(prompt_tokens))
        if request.max_tokens > left:
            raise ContextExceeded(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {request.max_tokens},"
                f" {prompt_tokens + request.max_tokens} together; model {self._spec.model!r} has a context of"
                f" {self._limits.context_length}: ask for at most {left}"
            )
        if len(request.resume_token_ids) > left:
            raise ContextExceeded(
                f"the prompt has {prompt_tokens} tokens and {len(request.resume_token_ids)} are to be resumed after;"
                f" model {self._spec.model!r} has a context of {self._limits.context_length}"
            )
        return request.max_tokens or min(left, self._limits.answer_tokens or left)


def open_llm(spec: ModelSpec, folder: Path) -> LlmEngine:
    """Load the model and its tokenizer. Raises EngineUnavailable, ModelRefused."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineUnavailable("engine 'llm' needs the package onnxruntime-genai: pip install onnxruntime-genai") from error
    onnxruntime_genai.disable_telemetry_events()
    return open_over(
        spec,
        folder,
        onnxruntime_genai,
        lambda described, limits: _decoder(spec, folder, described, limits, onnxruntime_genai),
    )


def open_over(spec: ModelSpec, folder: Path, genai: Any, decoder_of: Callable[[GenaiFolder, Limits], Decoder]) -> LlmEngine:
    """A folder's tokenizer and limits over somebody else's decoder. Raises ModelRefused, what `decoder_of` raises."""
    described = read_genai_folder(spec, folder)
    limits = _limits(spec, described)
    tokens = open_tokens(spec, folder, genai)
    return LlmEngine(spec, decoder_of(described, limits), tokens, limits)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the manifest says about the decoder."""

    kind: str
    slots: int
    threads: int
    cuda: int | None
    """The device; None = the CPU."""


def _wish(spec: ModelSpec, described: GenaiFolder) -> _Wish:
    return _Wish(
        kind=one_of(spec, "decoder", "auto", ("auto", "onnx", "genai")),
        slots=number(spec, "max_generations", DEFAULT_GENERATIONS, least=1, most=_MOST_GENERATIONS),
        threads=threads(spec, "intra_op_threads", described.intra_op_threads or _default_threads()),
        cuda=cuda_device(spec),
    )


def _decoder(spec: ModelSpec, folder: Path, described: GenaiFolder, limits: Limits, genai: Any) -> Decoder:
    wish = _wish(spec, described)
    if wish.kind == "onnx" and wish.cuda is not None:
        raise ModelRefused(f"model {spec.model!r} asks for decoder 'onnx' on CUDA; it runs on the CPU, decoder 'genai' on both")
    if wish.kind == "genai" or wish.cuda is not None:
        return _genai_decoder(spec, folder, described, limits, genai, wish)
    try:
        return open_onnx_decoder(
            folder, described, slots=wish.slots, context_length=limits.context_length, threads=wish.threads
        )
    except ImportError as error:
        raise EngineUnavailable("engine 'llm' needs the package onnxruntime: pip install onnxruntime") from error
    except UnsuitableGraph as unsuitable:
        if wish.kind == "onnx":
            raise ModelRefused(f"model {spec.model!r} cannot be run by decoder 'onnx': {unsuitable}") from unsuitable
        _log.info("decoder_genai", model=spec.model, version=spec.version, reason=str(unsuitable))
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime cannot load model {spec.model!r}: {first_line(error)}") from error
    return _genai_decoder(spec, folder, described, limits, genai, wish)


def _genai_decoder(spec: ModelSpec, folder: Path, described: GenaiFolder, limits: Limits, genai: Any, wish: _Wish) -> Decoder:
    if wish.cuda:
        raise ModelRefused(
            f"model {spec.model!r} asks for device 'cuda:{wish.cuda}'; ONNX Runtime GenAI is given the first one"
        )
    if wish.cuda is not None and not genai.is_cuda_available():
        raise EngineUnavailable(f"model {spec.model!r} asks for device 'cuda': install onnxruntime-genai-cuda and a driver")
    try:
        return open_genai_decoder(
            genai,
            str(folder),
            slots=wish.slots,
            context_length=limits.context_length,
            vocabulary=described.vocabulary,
            cuda=wish.cuda is not None,
            threads=wish.threads,
        )
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime GenAI cannot load model {spec.model!r}: {first_line(error)}") from error


def _limits(spec: ModelSpec, described: GenaiFolder) -> Limits:
    own = described.context_length
    lowered = number(spec, "context_length", own, least=1, most=10**9)
    if lowered > own:
        raise ModelRefused(f"parameter 'context_length' of model {spec.model!r} is {lowered}; its own is {own}")
    answer_tokens = number(spec, "max_tokens_default", 0, least=1, most=10**9)
    return Limits(lowered, answer_tokens, described.ends, described.default)


def _default_threads() -> int:
    """Half of the cores: the others are for the worker's loop and for other models."""
    return max(1, min(_MOST_THREADS_BY_DEFAULT, (os.cpu_count() or 1) // 2))


def _advanced(each: Continuation, logits: Any) -> Answer:
    try:
        return each.advance(logits)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> PenstockError:
    if isinstance(error, PenstockError):
        return error
    _log.error("generation_failed", exc_info=error)
    return EngineFailed("the engine failed on this generation; the worker's log has the reason")
