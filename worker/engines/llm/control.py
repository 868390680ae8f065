"""Control tokens in what a user wrote: where to cut a text so that none of them is read as one. Pure.

A tokenizer takes `<|end|>` for a control token wherever it stands. Cut after its first letter, and encoded piece by piece, it
is letters like any others. Text without anything of the kind is not cut, so it becomes the tokens that training saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, pairwise

from runtime.errors import InvalidArgument

# Unicode gives these code points no meaning, so a text can do without one of them.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class ControlTokens:
    """The strings that a tokenizer reads as control tokens."""

    def __init__(self, strings: Iterable[str]) -> None:
        # One letter cannot be cut; a text with it would have to be refused, and no model's template needs one.
        known = sorted({string for string in strings if len(string) > 1})
        self._starts = _starts(known) if known else None
        self._fronts = frozenset(string[:length] for string in known for length in range(1, len(string)))
        self._backs = frozenset(string[-length:] for string in known for length in range(1, len(string)))
        self._longest = max(map(len, known), default=0)

    def as_text(self, text: str) -> list[str]:
        """The text in pieces none of which has a control token."""
        places = [0, *(place + 1 for place in self._found(text)), len(text)]
        return [text[start:end] for start, end in pairwise(places) if start < end]

    def marked(self, text: str, mark: str) -> str:
        """With a mark wherever the text is to be cut, at its ends too where it and what comes next could make one together."""
        inside = mark.join(self.as_text(text)) if self._found(text) else text
        core = inside.strip()  # templates strip what they are given
        if not core or self._starts is None:
            return inside
        start = inside.index(core)
        before, after = inside[:start], inside[start + len(core) :]
        lengths = range(1, self._longest)
        front = mark if any(core[:length] in self._backs for length in lengths) else ""
        back = mark if any(core[-length:] in self._fronts for length in lengths) else ""
        return f"{before}{front}{core}{back}{after}"

    def unused_mark(self, texts: Iterable[str]) -> str:
        """A letter that none of the texts has. Raises InvalidArgument."""
        used: set[str] = set()
        used.update(*texts)
        for code in chain(*_PRIVATE_USE):
            if chr(code) not in used:
                return chr(code)
        raise InvalidArgument("the conversation has every letter of Unicode's private use areas; leave one of them out")

    def _found(self, text: str) -> list[int]:
        return [match.start() for match in self._starts.finditer(text)] if self._starts is not None else []


def _starts(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches before each of them, also where they overlap. Their first letters are looked for first, which is fast."""
    letters = "".join(sorted({re.escape(string[0]) for string in strings}))
    return re.compile(f"(?=[{letters}])(?={'|'.join(map(re.escape, strings))})")
