"""What LoadModel asked this worker to hold, beside what the scheduler orders. It lives as long as the process does.

Owns these orders and the waiting of who gave them. Never loads: the plan takes them in, and a call watches what becomes of its
copy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from runtime.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable, error_from_wire
from runtime.ids import Digest, ModelName, ModelVersion
from worker.life.lifecycle import Copy, CopyKey, Holdings
from worker.life.orders import Order
from worker.types import CopyState

MAX_LOCAL_ORDERS = 1_000


class LocalOrders:
    """`scheduled` are the scheduler's orders as they are now; `replanned` returns when a round took these ones in."""

    def __init__(
        self, holdings: Holdings, scheduled: Callable[[], Sequence[Order]], replanned: Callable[[], Awaitable[None]]
    ) -> None:
        self._holdings, self._scheduled, self._replanned = holdings, scheduled, replanned
        self._orders: dict[CopyKey, Order] = {}
        self._calls = 0

    @property
    def orders(self) -> Mapping[CopyKey, Order]:
        return MappingProxyType(self._orders)

    async def load(self, model: ModelName, version: ModelVersion, digest: Digest) -> Copy:
        """Hold this; returns once it is READY. Goes on holding it if the caller leaves, and if it failed, until it is unloaded.

        Raises what the load failed with; FailedPrecondition where the scheduler orders another digest of that version.
        """
        key = (model, version)
        if key not in self._orders and len(self._orders) >= MAX_LOCAL_ORDERS:
            raise ResourceExhausted(f"LoadModel holds {len(self._orders)} versions here, as many as it may; unload some")
        self._check_scheduled(key, digest)
        self._calls += 1
        order = self._orders[key] = Order(model, version, digest, 0, asked=self._calls)
        with self._holdings.watching() as changed:
            await self._replanned()
            while (copy := self._settled(order)) is None:
                changed.clear()
                await changed.wait()
        return copy

    async def unload(self, model: ModelName, version: ModelVersion) -> None:
        """Let go of what `load` asked for. Returns when it is gone; at once where it answers until another version can.

        Raises NotFound; FailedPrecondition for what the scheduler orders.
        """
        key = (model, version)
        if any(order.key == key for order in self._scheduled()):
            raise FailedPrecondition(
                f"the scheduler orders model {model!r} version {version} here; take its placement back, and it will go"
            )
        if self._orders.pop(key, None) is None:
            raise NotFound(f"LoadModel holds no model {model!r} version {version} here")
        with self._holdings.watching() as changed:
            await self._replanned()
            copy = self._holdings.get(key)
            if copy is None or copy.state is CopyState.READY:
                return
            while self._holdings.get(key) is copy:
                changed.clear()
                await changed.wait()

    def _check_scheduled(self, key: CopyKey, digest: Digest) -> None:
        for order in self._scheduled():
            if order.key == key and order.digest != digest:
                raise FailedPrecondition(
                    f"the scheduler orders model {key[0]!r} version {key[1]} with digest {order.digest}, not {digest}"
                )

    def _settled(self, order: Order) -> Copy | None:
        """The copy, once it is READY for this call. Raises what it failed with."""
        if self._orders.get(order.key) is None:
            raise Unavailable(f"model {order.model!r} version {order.version} was unloaded while it was being loaded")
        self._check_scheduled(order.key, order.digest)
        copy = self._holdings.get(order.key)
        if copy is None or copy.digest != order.digest:
            return None
        if copy.state is CopyState.READY:
            return copy
        if copy.asked >= order.asked and copy.state in (CopyState.FAILED, CopyState.UNAVAILABLE):
            failure = copy.failure or Unavailable(copy.reason)
            raise error_from_wire(failure.code, failure.reason, failure.message, failure.retry_after_s)
        return None
