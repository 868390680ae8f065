"""The registry as the worker reads it: manifests by digest, files from an offset; errors as our own classes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from runtime.errors import PenstockError, Unavailable
from runtime.ids import Digest
from runtime.status import DETAILS_KEY, error_of

_VAGUE = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)


class RegistrySource:
    """Implements `worker.artifacts.Source`."""

    def __init__(self, channel: grpc.aio.Channel, *, answer_s: float = 10.0, silence_s: float = 30.0) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(channel)
        self._answer_s, self._silence_s = answer_s, silence_s

    async def manifest(self, digest: Digest) -> bytes:
        try:
            answer = await self._stub.GetVersion(models_pb2.GetVersionRequest(digest=digest), timeout=self._answer_s)
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from failure
        return answer.manifest.SerializeToString()

    async def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        call = self._stub.FetchFile(models_pb2.FetchFileRequest(sha256=sha256, offset_bytes=offset_bytes))
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    message = await call.read()
                if not isinstance(message, models_pb2.FetchFileResponse):
                    return
                yield message.data
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from failure
        except TimeoutError as error:
            raise Unavailable(f"the registry sent nothing of file {sha256} for {self._silence_s:g} s") from error
        finally:
            call.cancel()


def _error(failure: grpc.aio.AioRpcError) -> PenstockError:
    told = any(key == DETAILS_KEY for key, _ in failure.trailing_metadata() or ())
    if not told and failure.code() in _VAGUE:  # the connection's end, not the registry's word
        return Unavailable(f"the registry broke off: {failure.details()}")
    if not told and failure.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"the registry does not answer: {failure.details()}")
    return error_of(failure)
