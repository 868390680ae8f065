"""One generation: the tokens that are still to be computed, those that were made, and the text that they have become.

Knows nothing of slots and batches: it is given logits and says what there is to show.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from worker.engine import Array, Finish, Logprob, Piece, TextRequest, TokenLogprob
from worker.engines.llm.sampling import Sampler, likeliest, log_probabilities
from worker.engines.llm.stopping import StopText
from worker.engines.llm.tokens import Tokens

NO_SLOT = -1


class Continuation:
    """A `Generation`. `slot` is the engine's to set; `release` gives it back."""

    def __init__(
        self,
        request: TextRequest,
        prompt: Sequence[int],
        budget: int,
        *,
        sampler: Sampler,
        tokens: Tokens,
        ends: frozenset[int],
        release: Callable[[Continuation], None],
    ) -> None:
        self.slot = NO_SLOT
        self.most_tokens = len(prompt) + budget
        self.uncomputed = [*prompt, *request.resume_token_ids]
        """Tokens that the decoder has yet to see; after the prompt, the last one made."""
        self._prompt_tokens = len(prompt)
        self._budget = budget
        self._top_logprobs = request.top_logprobs
        self._sampler = sampler
        self._tokens = tokens
        self._ends = ends
        self._release = release
        self._stop = StopText(request.stop)
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")
        # After a prompt that space is part of the text.
        self._drops_space = tokens.leading_space and not isinstance(request.prompt, str)
        for token in request.resume_token_ids:
            self._text(token)
        self._completion_tokens = len(request.resume_token_ids)
        self._held: list[int] = []
        self._held_logprobs: list[TokenLogprob] = []

    @property
    def exhausted(self) -> bool:
        """No more tokens may be made: `end` is all that is left."""
        return self._completion_tokens >= self._budget

    def advance(self, logits: Array) -> Piece | None:
        """Choose the next token; float32 [vocabulary]. Raises EngineFailed."""
        token = self._sampler.choose(logits)
        if token in self._ends:
            return self.end(Finish.STOP)
        if self._top_logprobs is not None:
            self._held_logprobs.append(self._logprobs(logits, token, self._top_logprobs))
        self._held.append(token)
        self._completion_tokens += 1
        self.uncomputed = [token]
        text = self._stop.add(self._text(token))
        if self._stop.met:
            return self._piece(text, Finish.STOP)
        if self.exhausted:
            return self.end(Finish.LENGTH, text)
        return self._piece(text) if text else None

    def end(self, finish: Finish, text: str = "") -> Piece:
        """The last piece; what was held back is shown, the first bytes of a letter as U+FFFD."""
        text += self._stop.add(self._letters.decode(b"", final=True))
        if self._stop.met:
            return self._piece(text, Finish.STOP)
        return self._piece(text + self._stop.rest(), finish)

    def close(self) -> None:
        self._release(self)

    def _text(self, token: int) -> str:
        """What a token adds to the text; nothing where it ends within a letter."""
        added = self._tokens.token_bytes(token)
        if self._drops_space and added:
            self._drops_space = False
            added = added.removeprefix(b" ")
        return self._letters.decode(added)

    def _piece(self, text: str, finish: Finish | None = None) -> Piece:
        usage = (self._prompt_tokens, self._completion_tokens) if finish is not None else (0, 0)
        piece = Piece(text, tuple(self._held), finish, *usage, logprobs=tuple(self._held_logprobs))
        self._held.clear()
        self._held_logprobs.clear()
        return piece

    def _logprobs(self, logits: Array, token: int, top: int) -> TokenLogprob:
        values = log_probabilities(logits)

        def of(each: int) -> Logprob:
            return Logprob(each, self._tokens.name(each), float(values[each]))

        return TokenLogprob(of(token), tuple(of(each) for each in likeliest(values, top)) if top else ())
