"""Who guesses API keys: addresses from which key after key was refused.

Pure: time is an argument. A key itself cannot be told from another by how long its refusal takes: it is looked up by its hash.
What is left to do is to make guessing slow: an address that had too many keys refused asks nobody for a while. Keys that are
known here are let in from there all the same, because an address may be shared. Bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import AddressValueError, IPv6Address

GUESSES = 20
"""So many keys from one address may be refused within the window."""

WINDOW_S = 10.0
MAX_ADDRESSES = 10_000


class Guesses:
    """By address; an IPv6 address stands for its /64, which is as small as anybody is given."""

    def __init__(self, guesses: int = GUESSES, window_s: float = WINDOW_S, max_addresses: int = MAX_ADDRESSES) -> None:
        self._guesses, self._window_s, self._max_addresses = guesses, window_s, max_addresses
        self._refused: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """How many, and when the window of the first of them ends."""

    def __bool__(self) -> bool:
        """Whether any key was refused lately."""
        return bool(self._refused)

    def refused(self, address: str, now_s: float) -> None:
        """A key from this address was refused."""
        network = _network(address)
        count, until_s = self._refused.get(network, (0, 0.0))
        if until_s <= now_s:
            count, until_s = 0, now_s + self._window_s
        self._refused[network] = count + 1, until_s
        self._refused.move_to_end(network)
        self._forget(now_s)

    def wait_s(self, address: str, now_s: float) -> float:
        """For how long no unknown key from this address is looked at; 0: it is."""
        count, until_s = self._refused.get(_network(address), (0, 0.0))
        return until_s - now_s if count >= self._guesses and until_s > now_s else 0.0

    def _forget(self, now_s: float) -> None:
        """What is over, a few at a time, and what is too much."""
        for _ in range(2):
            oldest = next(iter(self._refused))
            if self._refused[oldest][1] > now_s and len(self._refused) <= self._max_addresses:
                return
            del self._refused[oldest]
            if not self._refused:
                return


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        known = IPv6Address(address)
    except AddressValueError:
        return address[:64]
    if (mapped := known.ipv4_mapped) is not None:
        return str(mapped)
    return f"{int(known) >> 64:x}"
