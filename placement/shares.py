"""One tenant's part of something that many take places of, by a dynamic threshold.

A tenant may hold a further place if it then holds no more than `alpha` times the places that are left free, and one that holds
none may take any free place. So the last places are never taken by someone who has some already, a tenant that comes finds
room however hard another pushes, and as places come back the parts become equal: with n tenants pushing, each holds
alpha / (1 + alpha n) of all. A `share` is what one tenant holds while it is alone, alpha / (1 + alpha).
Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on
Networking 6 (2), 1998.
"""

from __future__ import annotations


def share_allows(held: int, free: int, share: float) -> bool:
    """Whether somebody who holds that many places may take one more of those that are free."""
    if not held or share >= 1:
        return free > 0
    # held + 1 <= alpha (free - 1), with alpha = share / (1 - share) multiplied out.
    return (held + 1) * (1 - share) <= share * (free - 1)
