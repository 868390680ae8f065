"""ONNX Runtime GenAI: decoders that generate text, on the CPU or on one CUDA device.

One generator per generation, stepped by turns on the lane's thread. GenAI's own Engine is not used: on models without paged
attention, which is every model on a CPU, it batches statically, so that a request which comes while others run waits for the
last of them to end, and it has no stop strings there (0.18, tried). Parameters of a manifest it reads: `device` (cpu, cuda),
`context_length`, `max_tokens_default`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from runtime.errors import InvalidArgument
from worker.engine import (
    EngineFailed,
    EngineUnavailable,
    Finish,
    Generation,
    ModelRefused,
    Piece,
    Sampling,
    TextRequest,
)
from worker.engines.stopping import StopText
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.engine.llm")

_MAX_SEED = 2**31  # GenAI takes an int; -1 means none
_MAX_STOPS = 16


class LlmEngine:
    """One model with its tokenizer."""

    def __init__(self, spec: ModelSpec, genai: Any, model: Any, limits: tuple[int, int, int]) -> None:
        self._spec = spec
        self._genai = genai
        self._model: Any = model
        self._tokenizer: Any = genai.Tokenizer(model)
        self._ends = frozenset(int(token) for token in self._tokenizer.eos_token_ids)
        self._context_length, self._vocabulary, self._max_tokens_default = limits

    def begin(self, request: TextRequest) -> Generation:
        """Tokenize, check the limits, run the prompt's prefill. Raises InvalidArgument naming the numbers."""
        _check_sampling(request.sampling)
        if len(request.stop) > _MAX_STOPS or any(not stop for stop in request.stop):
            raise InvalidArgument(f"{len(request.stop)} stop strings were given; at most {_MAX_STOPS}, none of them empty")
        if any(token >= self._vocabulary for token in request.resume_token_ids):
            raise InvalidArgument(f"a token to resume after is outside of this model's {self._vocabulary} tokens")
        prompt = self._encoded(request)
        budget = self._budget(len(prompt), request)
        tokens = np.concatenate([prompt, np.array(request.resume_token_ids, np.int32)])
        return _LlmGeneration(self, request, tokens, len(prompt), budget)

    def close(self) -> None:
        self._tokenizer = None
        self._model = None

    def generator(self, tokens: Any, sampling: Sampling, max_length: int) -> Any:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=max_length, **_search_options(sampling))
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(tokens)
        return generator

    def text_stream(self) -> Any:
        return self._tokenizer.create_stream()

    def ends(self, token: int) -> bool:
        return token in self._ends

    def _encoded(self, request: TextRequest) -> Any:
        text = request.prompt
        if not isinstance(text, str):
            if not text:
                raise InvalidArgument("the conversation has no messages; send at least one")
            turns = json.dumps([{"role": turn.role, "content": turn.content} for turn in text])
            try:
                text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True)
            except Exception as error:
                raise InvalidArgument(
                    f"model {self._spec.model!r} has no chat template that takes this conversation; send a prompt instead"
                ) from error
        tokens = np.asarray(self._tokenizer.encode(text), np.int32)
        if not tokens.size:
            raise InvalidArgument("the prompt is empty; send at least one token")
        return tokens

    def _budget(self, prompt_tokens: int, request: TextRequest) -> int:
        """How many tokens may be generated, resumed ones included."""
        left = self._context_length - prompt_tokens
        if left < 1:
            raise InvalidArgument(
                f"the prompt has {prompt_tokens} tokens; model {self._spec.model!r} has a context of {self._context_length}"
                " tokens, of which at least one is for the answer"
            )
        if request.max_tokens > left:
            raise InvalidArgument(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {request.max_tokens},"
                f" {prompt_tokens + request.max_tokens} together; model {self._spec.model!r} has a context of"
                f" {self._context_length}: ask for at most {left}"
            )
        return request.max_tokens or max(1, min(left, self._max_tokens_default or left))


class _LlmGeneration:
    """One generator and the text that its tokens have become."""

    def __init__(self, engine: LlmEngine, request: TextRequest, tokens: Any, prompt_tokens: int, budget: int) -> None:
        self._engine = engine
        self._prompt_tokens = prompt_tokens
        self._budget = budget
        self._completion_tokens = len(request.resume_token_ids)
        self._stream = engine.text_stream()
        self._stop = StopText(request.stop)
        for token in request.resume_token_ids:
            self._stream.decode(token)
        self._held: list[int] = []
        self._generator: Any = None
        if self._completion_tokens < budget:
            try:
                self._generator = engine.generator(tokens, request.sampling, prompt_tokens + budget)
            except Exception as error:
                raise _failed(error) from error

    def step(self) -> Piece | None:
        if self._completion_tokens >= self._budget:
            return self._end(Finish.LENGTH)
        try:
            self._generator.generate_next_token()
            token = int(self._generator.get_next_tokens()[0])
            if self._engine.ends(token):
                return self._end(Finish.STOP)
            text = self._stop.add(self._stream.decode(token))
        except Exception as error:
            raise _failed(error) from error
        self._completion_tokens += 1
        self._held.append(token)
        if self._stop.met:
            return self._end(Finish.STOP, text)
        if self._completion_tokens >= self._budget:
            return self._end(Finish.LENGTH, text)
        if not text:
            return None
        token_ids = tuple(self._held)
        self._held.clear()
        return Piece(text, token_ids)

    def close(self) -> None:
        self._generator = None

    def _end(self, finish: Finish, text: str = "") -> Piece:
        text += self._stop.rest()
        self.close()
        return Piece(text, tuple(self._held), finish, self._prompt_tokens, self._completion_tokens)


def open_llm(spec: ModelSpec, folder: Path) -> LlmEngine:
    """Load the model and its tokenizer. Raises EngineUnavailable, ModelRefused."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineUnavailable("engine 'llm' needs the package onnxruntime-genai: pip install onnxruntime-genai") from error
    onnxruntime_genai.disable_telemetry_events()
    device = spec.parameters.get("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise ModelRefused(f"parameter 'device' of model {spec.model!r} is {device!r}; allowed: cpu, cuda")
    if device == "cuda" and not onnxruntime_genai.is_cuda_available():
        raise EngineUnavailable(f"model {spec.model!r} asks for device 'cuda': install onnxruntime-genai-cuda and a driver")
    limits = _limits(spec, folder)
    try:
        config = onnxruntime_genai.Config(str(folder))
        config.clear_providers()
        if device == "cuda":
            config.append_provider("cuda")
        return LlmEngine(spec, onnxruntime_genai, onnxruntime_genai.Model(config), limits)
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime GenAI cannot load model {spec.model!r}: {_first_line(error)}") from error


def _limits(spec: ModelSpec, folder: Path) -> tuple[int, int, int]:
    """Context length, vocabulary size and the answer's default length (0 = what the context leaves), in tokens."""
    try:
        described = json.loads((folder / "genai_config.json").read_bytes())["model"]
        context_length, vocabulary = int(described["context_length"]), int(described["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRefused(
            f"model {spec.model!r} has no readable genai_config.json with model.context_length and model.vocab_size"
        ) from error
    lowered = _number(spec, "context_length", context_length)
    if lowered > context_length:
        raise ModelRefused(f"parameter 'context_length' of model {spec.model!r} is {lowered}; its own is {context_length}")
    return lowered, vocabulary, _number(spec, "max_tokens_default", 0)


def _number(spec: ModelSpec, name: str, default: int) -> int:
    text = spec.parameters.get(name, "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise ModelRefused(f"parameter {name!r} of model {spec.model!r} is {text!r}; a positive number is expected")
    return int(text) if text else default


def _check_sampling(sampling: Sampling) -> None:
    if sampling.temperature is not None and not 0 <= sampling.temperature <= 100:
        raise InvalidArgument(f"temperature is {sampling.temperature}; it is taken from 0 (the most likely token) to 100")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise InvalidArgument(f"top_p is {sampling.top_p}; it is taken above 0 and up to 1")


def _search_options(sampling: Sampling) -> dict[str, Any]:
    """GenAI's names. Nothing asked for: what the model's own configuration says."""
    if sampling == Sampling():
        return {}
    if sampling.temperature == 0:
        return {"do_sample": False}
    options: dict[str, Any] = {"do_sample": True, "top_p": 1.0 if sampling.top_p is None else sampling.top_p}
    # An exported configuration often says top_k 1, which would make every other choice moot.
    options["top_k"] = sampling.top_k or 0
    options["temperature"] = 1.0 if sampling.temperature is None else sampling.temperature
    if sampling.seed is not None:
        options["random_seed"] = sampling.seed % _MAX_SEED
    return options


def _failed(error: Exception) -> EngineFailed:
    _log.error("generation_failed", exc_info=error)
    return EngineFailed("ONNX Runtime GenAI failed on this generation; the worker's log has the reason")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
