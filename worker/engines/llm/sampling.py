"""How the next token is chosen from a model's logits. Pure but for each sampler's own random numbers, which follow its seed.

The order is that of the field: penalties, temperature, top-k, top-p. Log probabilities are those of the model itself, before
any of it. Decides nothing about when a text ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InvalidArgument
from worker.engine import Array, EngineFailed, Sampling

_MAX_BIAS = 100.0
MAX_TOP_LOGPROBS = 20  # as in OpenAI's interface
_MAX_TEMPERATURE = 100.0
_MAX_REPETITION_PENALTY = 100.0
_MAX_PENALTY = 2.0  # as in OpenAI's interface
_LEAST_TEMPERATURE = 1e-5
_FIRST_CANDIDATES = 1024
"""The nucleus is looked for among these before more are sorted."""
_MORE_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """`Sampling` with the model's defaults filled in."""

    temperature: float = 1.0
    """0 = the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0


def check_sampling(sampling: Sampling) -> None:
    """Raises InvalidArgument."""
    _check("temperature", sampling.temperature, 0, _MAX_TEMPERATURE, "0 (the most likely token) to 100")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise InvalidArgument(f"top_p is {sampling.top_p}; it is taken above 0 and up to 1")
    if sampling.top_k is not None and sampling.top_k < 0:
        raise InvalidArgument(f"top_k is {sampling.top_k}; it is a number of tokens, 0 = all")
    _check("frequency_penalty", sampling.frequency_penalty, -_MAX_PENALTY, _MAX_PENALTY, "-2 to 2")
    _check("presence_penalty", sampling.presence_penalty, -_MAX_PENALTY, _MAX_PENALTY, "-2 to 2")
    repetition = sampling.repetition_penalty
    if repetition is not None and not 0 < repetition <= _MAX_REPETITION_PENALTY:
        raise InvalidArgument(f"repetition_penalty is {repetition}; it is taken above 0 (1 = none) and up to 100")


def _check(name: str, value: float | None, least: float, most: float, allowed: str) -> None:
    if value is not None and not least <= value <= most:  # NaN is neither
        raise InvalidArgument(f"{name} is {value}; it is taken from {allowed}")


def choice(sampling: Sampling, default: Choice) -> Choice:
    """What the request asks for. One that says nothing about the choice itself is served as the model's configuration says."""
    temperature, top_p, top_k = default.temperature, default.top_p, default.top_k
    if (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) != (None, None, None, None):
        # An exported configuration often says top_k 1, which would make every other wish moot.
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        top_k = sampling.top_k or 0
    repetition = sampling.repetition_penalty
    return Choice(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        frequency_penalty=sampling.frequency_penalty or 0.0,
        presence_penalty=sampling.presence_penalty or 0.0,
        repetition_penalty=default.repetition_penalty if repetition is None else repetition,
    )


class Sampler:
    """One generation's choices. The n-th draw depends on the seed and n alone, so what is resumed goes on as it would have."""

    def __init__(
        self,
        choice: Choice,
        seed: int | None,
        prompt: Sequence[int],
        resumed: Sequence[int] = (),
        bias: Mapping[int, float] | None = None,
    ) -> None:
        self._choice = choice
        self._biased = np.fromiter(bias, np.int64, len(bias)) if bias else None
        self._biases = np.fromiter(bias.values(), np.float32, len(bias)) if bias else None
        self._prompt = np.unique(np.asarray(prompt, np.int64)) if choice.repetition_penalty != 1.0 else None
        self._made = Counter(resumed)
        self._penalises = (choice.frequency_penalty, choice.presence_penalty, choice.repetition_penalty) != (0.0, 0.0, 1.0)
        self._random: np.random.Generator | None = None
        if choice.temperature > 0 and choice.top_k != 1:
            bits = np.random.PCG64(seed)
            bits.advance(len(resumed))
            self._random = np.random.Generator(bits)

    def choose(self, logits: Array) -> int:
        """The next token; float32 [vocabulary]. Raises EngineFailed where the model computed no numbers."""
        if self._biased is not None:
            logits = logits.astype(np.float32)
            logits[self._biased] += self._biases
        penalised = self._penalised(logits) if self._penalises else logits
        token = int(penalised.argmax())  # NaN counts as the largest
        if not math.isfinite(penalised[token]):
            raise EngineFailed("the model computed logits that are no numbers")
        if self._random is not None:
            token = _drawn(penalised, self._choice, self._random.random())
        if self._penalises:
            self._made[token] += 1
        return token

    def _penalised(self, logits: Array) -> Array:
        """Repetition counts the prompt too; frequency and presence count what was generated."""
        choice, changed = self._choice, logits.astype(np.float32)
        made = np.fromiter(self._made.keys(), np.int64, len(self._made))
        if self._prompt is not None:
            seen = np.union1d(self._prompt, made)
            values = changed[seen]
            changed[seen] = np.where(values > 0, values / choice.repetition_penalty, values * choice.repetition_penalty)
        if made.size:
            counts = np.fromiter(self._made.values(), np.float32, made.size)
            changed[made] -= counts * np.float32(choice.frequency_penalty) + np.float32(choice.presence_penalty)
        return changed


def check_bias(bias: Mapping[int, float], vocabulary: int) -> None:
    """Raises InvalidArgument."""
    for token, value in bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidArgument(f"logit_bias names token {token}; this model has {vocabulary}, from 0")
        _check(f"logit_bias of token {token}", value, -_MAX_BIAS, _MAX_BIAS, "-100 to 100")


def _drawn(logits: Array, choice: Choice, place: float) -> int:
    """The token at `place`, from 0 to 1, of the probabilities that temperature, top-k and top-p leave."""
    weights: Array = np.exp((logits - logits.max()) / np.float32(max(choice.temperature, _LEAST_TEMPERATURE)))
    if choice.top_k <= 0 and choice.top_p >= 1.0:
        return _at(np.cumsum(weights, dtype=np.float64), place)
    tokens = _likeliest(logits, weights, choice.top_k, choice.top_p)
    return int(tokens[_at(np.cumsum(weights[tokens], dtype=np.float64), place)])


def _likeliest(logits: Array, weights: Array, top_k: int, top_p: float) -> NDArray[np.int64]:
    """The tokens that are left to choose from, likeliest first."""
    count = top_k or _FIRST_CANDIDATES
    kept = _sorted(logits, count)
    if top_p >= 1.0:
        return kept
    mass = top_p * float((weights[kept] if top_k else weights).sum(dtype=np.float64))
    cumulative = np.cumsum(weights[kept], dtype=np.float64)
    while not top_k and cumulative[-1] < mass and count < logits.size:
        count *= _MORE_CANDIDATES
        kept = _sorted(logits, count)
        cumulative = np.cumsum(weights[kept], dtype=np.float64)
    return kept[: int(np.searchsorted(cumulative, mass)) + 1]


def _sorted(values: Array, count: int) -> NDArray[np.int64]:
    """Where the largest are, so many of them or all, the largest first."""
    if count >= values.size:
        return np.argsort(-values)
    kept = np.argpartition(values, -count)[-count:]
    ordered: NDArray[np.int64] = kept[np.argsort(-values[kept])]
    return ordered


def _at(cumulative: NDArray[np.float64], place: float) -> int:
    return min(int(np.searchsorted(cumulative, place * cumulative[-1], side="right")), cumulative.size - 1)


def log_probabilities(logits: Array) -> NDArray[np.float64]:
    """float64 [vocabulary], from float32 logits."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
    return result


def likeliest(values: Array, count: int) -> list[int]:
    """So many tokens, likeliest first."""
    return [int(token) for token in _sorted(values, count)[:count]]
