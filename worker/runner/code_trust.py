"""Whose code runs on this worker, and for whom.

A manifest of engine `python` brings code. Its signer has to be listed for the tenant that calls, or for all; a signer who is
trusted with models is not thereby trusted with code. Decides; who signed was verified before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from inference import grpc_service_pb2

from runtime.errors import Code, FailedPrecondition, PenstockError
from worker.statistics import CopyStatistics
from worker.types import CallContext, Kind, ModelSpec

ENGINES_OF_CODE = frozenset(("python",))
ANY_TENANT = "*"


class CodeNotTrusted(PenstockError, code=Code.PERMISSION_DENIED, reason="CODE_NOT_TRUSTED"):
    """The model brings code of a signer who is not trusted with it, here or by this tenant."""


def brings_code(spec: ModelSpec) -> bool:
    """Whether code of the model's own runs when it is opened."""
    return spec.engine in ENGINES_OF_CODE


@dataclass(frozen=True, slots=True)
class CodeTrust:
    """Which signers' code runs for which tenants. As it is made here: nobody's."""

    tenants: Mapping[bytes, frozenset[str]] = field(default_factory=dict)
    """By Ed25519 public key."""
    allow_unsigned: bool = False
    """Folders that a standalone worker serves as they lie have no signer."""

    def check_load(self, spec: ModelSpec) -> None:
        """Raises CodeNotTrusted."""
        if not brings_code(spec):
            return
        if not spec.signer:
            if self.allow_unsigned:
                return
            raise CodeNotTrusted(
                f"model {spec.model!r} brings code that nobody signed; publish it, or pass --allow-unsigned-code to run it as"
                " it lies here"
            )
        if not self.tenants.get(spec.signer):
            raise CodeNotTrusted(
                f"model {spec.model!r} brings code signed by {spec.signer.hex()}, who is not among the code signers here; add a"
                " line '<key> <tenant or *>' to the file of --code-signers"
            )

    def check_call(self, spec: ModelSpec, tenant: str) -> None:
        """Raises CodeNotTrusted."""
        if not brings_code(spec) or not spec.signer:
            return  # an unsigned one was allowed for all when it was loaded
        trusted = self.tenants.get(spec.signer, frozenset())
        if tenant not in trusted and ANY_TENANT not in trusted:
            raise CodeNotTrusted(
                f"model {spec.model!r} runs code of a signer whom tenant {tenant or '(none)'!r} does not trust with code here"
            )


@dataclass(frozen=True, slots=True)
class CodeSigners:
    """The settings, from which the trust is read anew at each load."""

    file: Path | None = None
    allow_unsigned: bool = False

    def read(self) -> CodeTrust:
        """Raises FailedPrecondition."""
        tenants = MappingProxyType({}) if self.file is None else read_code_signers(self.file)
        return CodeTrust(tenants, self.allow_unsigned)


class Copy(Protocol):
    """What `TrustedCopy` guards: a `TensorCopy`, which the module that opens copies defines."""

    spec: ModelSpec
    statistics: CopyStatistics

    @property
    def queued_rows(self) -> int: ...

    @property
    def pending_requests(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse: ...

    async def drained(self) -> None: ...

    def close(self) -> None: ...


class TrustedCopy:
    """A `TensorCopy` whose code runs for those tenants alone who trust its signer with code."""

    kind: Literal[Kind.TENSORS] = Kind.TENSORS

    def __init__(self, copy: Copy, trust: CodeTrust) -> None:
        self._copy, self._trust = copy, trust
        self.spec, self.statistics = copy.spec, copy.statistics

    @property
    def queued_rows(self) -> int:
        return self._copy.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._copy.pending_requests

    @property
    def busy(self) -> bool:
        return self._copy.busy

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer. Raises CodeNotTrusted before anything of the request was looked at."""
        self._trust.check_call(self.spec, call.tenant)
        return await self._copy.infer(request, call)

    async def drained(self) -> None:
        await self._copy.drained()

    def close(self) -> None:
        self._copy.close()


def read_code_signers(file: Path) -> Mapping[bytes, frozenset[str]]:
    """Lines of a hex Ed25519 key and a tenant, or * for all; `#` starts a comment. Raises FailedPrecondition."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"cannot read the code signers in {file}") from error
    found: dict[bytes, set[str]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        key = _key(words[0])
        if key is None or len(words) != 2:
            raise FailedPrecondition(f"line {number} of {file} is no code signer: '<64 hex digits> <tenant or *>' is expected")
        found.setdefault(key, set()).add(words[1])
    return MappingProxyType({key: frozenset(tenants) for key, tenants in found.items()})


def _key(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) == 32 else None
