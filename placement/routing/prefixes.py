"""Which workers saw the beginning of a prompt last, and so may still have computed it.

A prompt is cut into blocks of equal size, and each block's hash contains all before it: two prompts share a hash exactly where
they share everything up to there. A worker that answered is remembered for every block of that prompt. Owns this memory, a
bounded number of blocks of which the longest unused goes first. Never keeps text: a hash cannot be read back, and the caller's
salt keeps tenants apart.

Source: chained block hashes as in vLLM's automatic prefix caching, which is what makes the worker's own cache hit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from runtime.ids import WorkerId

BLOCK_BYTES = 256
"""About 64 tokens."""

MAX_BLOCKS = 32
KEPT_BLOCKS = 65_536
HOLDERS = 4
"""Workers remembered for one block: a beginning that everybody shares, such as a system prompt, is in several caches."""

_DIGEST_BYTES = 8

Holder = tuple[WorkerId, int]
"""A worker and its tenure: one that left and came back has an empty cache."""


def hashes_of(text: str | bytes, block: int = BLOCK_BYTES, at_most: int = MAX_BLOCKS, *, salt: str = "") -> tuple[int, ...]:
    """The hashes of a prompt's first whole blocks, each of its block and all before it. `salt`: the tenant and model."""
    limit = block * at_most
    head = text[:limit].encode(errors="surrogatepass")[:limit] if isinstance(text, str) else text[:limit]
    chained, hashes = hashlib.blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest(), []
    for start in range(0, len(head) - block + 1, block):
        chained = hashlib.blake2b(head[start : start + block], digest_size=_DIGEST_BYTES, key=chained).digest()
        hashes.append(int.from_bytes(chained, "little"))
    return tuple(hashes)


class PrefixMemory:
    """Blocks and who saw them."""

    def __init__(self, kept: int = KEPT_BLOCKS) -> None:
        self._kept = kept
        self._holders: OrderedDict[int, tuple[Holder, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def learn(self, prefix: Sequence[int], worker_id: WorkerId, tenure: int) -> None:
        """This worker has seen all of it now."""
        holder, holders = (worker_id, tenure), self._holders
        before: tuple[Holder, ...] | None = None
        alone: tuple[Holder, ...] = (holder,)
        now = alone
        for block in reversed(prefix):  # the first stays longest: without it the rest is of no use
            known = holders.get(block)
            if known is None:
                holders[block] = alone
                continue
            if known is not before:  # neighbours mostly have the same holders
                before = known
                others = [each for each in known if each[0] != worker_id]
                now = known if known[0] == holder else (holder, *others[: HOLDERS - 1])
            if now is not known:
                holders[block] = now
            holders.move_to_end(block)
        while len(holders) > self._kept:
            holders.popitem(last=False)

    def matches(self, prefix: Sequence[int]) -> Mapping[Holder, float]:
        """Who saw how much of it, from its beginning on without a gap, as a part of the whole."""
        whole, found = len(prefix), dict[Holder, float]()
        before: tuple[Holder, ...] | None = None
        alive: tuple[Holder, ...] = ()
        for count, block in enumerate(prefix):
            holders = self._holders.get(block, ())
            if holders is before:
                continue
            still = holders if before is None else tuple([each for each in alive if each in holders])
            for each in alive:
                if each not in still:
                    found[each] = count / whole
            before, alive = holders, still
            if not alive:
                break
        return found | dict.fromkeys(alive, 1.0)
