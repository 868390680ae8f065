"""Calls of every kind to a registry, again and again, while a test takes away what it stands on; what each came to is kept."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc

from cli.publish import publish_folder
from runtime.channel import inner_channel
from runtime.errors import PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.status import error_of

_MODEL_TOML = 'name = "{name}"\nengine = "python"\ntask = "tensor"\n'
_PASSWORD = "correct horse battery staple"
_PAUSE_S = 0.02
"""Between a call that failed and the next of its kind: not to be right, but not to spin."""


def model_folder(folder: Path, name: str, size_bytes: int) -> Path:
    """A model whose one file of code is like no other's."""
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(_MODEL_TOML.format(name=name))
    (folder / "model.py").write_bytes(b"# " + secrets.token_hex(size_bytes // 2).encode())
    return folder


@dataclass(slots=True)
class Load:
    """How often each kind of call was done, and how each that was not ended."""

    done: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, PenstockError]] = field(default_factory=list)
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self, calls: dict[str, Callable[[], Awaitable[object]]]) -> AsyncIterator[None]:
        """Each kind one after the other, all kinds at once. Leaving waits for those under way."""
        async with asyncio.TaskGroup() as group:
            for what, call in calls.items():
                group.create_task(self._repeat(what, call))
            try:
                yield
            finally:
                self.ending.set()

    async def more(self, count: int, *kinds: str, patience_s: float = 30.0) -> None:
        """Return once each of these kinds was done so many times from now on."""
        await self._grown(lambda: self.done, count, kinds, patience_s)

    async def more_failed(self, *kinds: str, count: int = 1, patience_s: float = 30.0) -> None:
        """Return once each of these kinds failed from now on."""
        await self._grown(lambda: Counter(what for what, _ in self.failed), count, kinds, patience_s)

    def reasons(self) -> set[tuple[str, str]]:
        """Code and reason of all that failed."""
        return {(error.code.name, error.reason) for _, error in self.failed}

    async def _grown(self, counted: Callable[[], Counter[str]], count: int, kinds: tuple[str, ...], patience_s: float) -> None:
        before = Counter(counted())
        try:
            async with asyncio.timeout(patience_s):
                while any(counted()[what] - before[what] < count for what in kinds):
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            shown = [(what, error.code.name, error.reason, error.message) for what, error in self.failed[-5:]]
            raise AssertionError(f"{kinds} {count} times; {counted() - before} came; the last that failed: {shown}") from None

    async def _repeat(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        while not self.ending.is_set():
            try:
                await call()
            except grpc.aio.AioRpcError as failure:
                self.failed.append((what, error_of(failure)))
                await asyncio.sleep(_PAUSE_S)
            else:
                self.done[what] += 1


class Calls:
    """One of each kind: keys resolved, models listed and read, versions published, an alias moved."""

    KINDS = ("resolve", "list", "get", "publish", "move")

    def __init__(
        self, operator: grpc.aio.Channel, gateway: grpc.aio.Channel, identity: NodeIdentity, folder: Path, *, timeout_s: float
    ) -> None:
        self._operator, self._identity, self._folder, self._timeout_s = operator, identity, folder, timeout_s
        self.models = models_pb2_grpc.ModelServiceStub(operator)
        self._operators_accounts = accounts_pb2_grpc.AccountServiceStub(operator)
        self._accounts = accounts_pb2_grpc.AccountServiceStub(gateway)
        self._secret_sha256 = b""
        self.key_id = ""
        self.published: set[str] = set()
        self.stable = ""
        """What the alias points at, as far as somebody was told."""

    async def prepare(self) -> None:
        """What the calls are about: a key, and a model `first` with two versions."""
        request = accounts_pb2.CreateKeyRequest(tenant="default", name="load", role="caller")
        made = await self._operators_accounts.CreateKey(request)
        self.key_id, self._secret_sha256 = made.key.key_id, hashlib.sha256(made.secret.encode()).digest()
        for number in range(2):
            await self.publish_one("first", 10_000 + number)

    def all(self) -> dict[str, Callable[[], Awaitable[object]]]:
        everything = (self.resolve, self.list, self.get, self.publish, self.move)
        return dict(zip(self.KINDS, everything, strict=True))

    async def resolve(self) -> None:
        request = accounts_pb2.ResolveKeyRequest(secret_sha256=self._secret_sha256)
        assert (await self._accounts.ResolveKey(request, timeout=self._timeout_s)).key.name == "load"

    async def list(self) -> None:
        await self.models.ListModels(models_pb2.ListModelsRequest(), timeout=self._timeout_s)

    async def get(self) -> None:
        await self.models.GetVersion(models_pb2.GetVersionRequest(model="first"), timeout=self._timeout_s)

    async def publish(self) -> None:
        self.published.add(await self.publish_one("load", 300_000))

    async def publish_one(self, model: str, size_bytes: int) -> str:
        folder = model_folder(self._folder / secrets.token_hex(6), model, size_bytes)
        async with asyncio.timeout(60):
            return (await publish_folder(self._operator, self._identity.signing_key, folder)).version

    async def move(self) -> None:
        """From whichever of the two versions it points at to the other, compared and set."""
        before = await self.points_at()
        wanted = "2" if before == "1" else "1"
        request = models_pb2.MoveAliasRequest(
            model="first", alias="stable", version=wanted, expected_version=before, immediate=True
        )
        await self.models.MoveAlias(request, timeout=self._timeout_s)
        self.stable = wanted

    async def create_user(self) -> None:
        """Who logs in."""
        request = accounts_pb2.CreateUserRequest(tenant="default", name="ann", role="owner", password=_PASSWORD)
        await self._operators_accounts.CreateUser(request, timeout=self._timeout_s)

    async def log_in(self) -> None:
        await self._operators_accounts.LogIn(accounts_pb2.LogInRequest(name="ann", password=_PASSWORD), timeout=self._timeout_s)

    async def revoke(self) -> None:
        """The key that is resolved; it is no more."""
        await self._operators_accounts.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=self.key_id), timeout=self._timeout_s)

    async def points_at(self) -> str:
        listed = await self.models.ListModels(models_pb2.ListModelsRequest(), timeout=self._timeout_s)
        (first,) = (model for model in listed.models if model.model == "first")
        return next((alias.version for alias in first.aliases if alias.alias == "stable"), "")

    async def version_count(self) -> int:
        listed = await self.models.ListModels(models_pb2.ListModelsRequest(), timeout=self._timeout_s)
        return sum(len(model.versions) for model in listed.models)

    async def check_history(self) -> None:
        """Every version and every move is there once, and none that nobody was told of is missing a part."""
        listed = await self.models.ListModels(models_pb2.ListModelsRequest())
        versions = {model.model: [version.version for version in model.versions] for model in listed.models}
        assert self.published <= set(versions.get("load", [])), "what was answered is there"
        assert sorted(map(int, versions.get("load", []))) == list(range(1, len(versions.get("load", [])) + 1))
        moves = await self.models.ListAliasMoves(models_pb2.ListAliasMovesRequest(model="first", limit=1000))
        generations = [move.generation for move in moves.moves]
        assert generations == list(range(len(generations), 0, -1)), "the history has every move once"
        assert moves.moves[0].to_version == await self.points_at()


@asynccontextmanager
async def calling(
    address: str, operator: NodeIdentity, gateway: NodeIdentity, folder: Path, *, timeout_s: float = 20.0
) -> AsyncIterator[Calls]:
    """Those calls to the registry there, prepared."""
    async with (
        inner_channel(address, operator, Role.REGISTRY) as operators,
        inner_channel(address, gateway, Role.REGISTRY) as gateways,
    ):
        calls = Calls(operators, gateways, operator, folder, timeout_s=timeout_s)
        await calls.prepare()
        yield calls
