"""`penstock infer --seal`: one request that one worker alone reads, and its answer, which only we read.

Reserves a place at the gateway, believes the worker for the word of the mesh's authority, and sends it the sealed request past
gateway and scheduler. These see which model is asked, and by whom; not what. How a call is sealed is `runtime.sealed_client`'s.
"""

from __future__ import annotations

from pathlib import Path

import grpc.aio
from inference import grpc_service_pb2
from rich.console import Console
from rich.text import Text

from cli.infer import TIMEOUT_S, Question, request_for, show
from cli.profile import Profile
from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.sealed_client import ReservedWorker, SealedClient


class WorkerUnreachable(PenstockError, code=Code.UNAVAILABLE, reason="SEALED_WORKER_UNREACHABLE"):
    """A place is kept at a worker that cannot be spoken to from here."""


async def infer_sealed(profile: Profile, question: Question, authority: Path) -> None:
    """Ask one worker alone, print what comes. Raises what says that no worker is to be believed, or none may be reserved."""
    certificate = authority_certificate(authority)
    async with profile.gateway_channel() as channel:
        request = await request_for(channel, profile, question)
        client = SealedClient(channel, profile.api_key, certificate)
        async with client.reserved(question.model, question.version, ttl_s=TIMEOUT_S) as worker:
            response = await asked(worker, request)
    show(response, question)
    told = f"sealed to worker {worker.place.worker_id} at {worker.place.address}; nobody on the way could read it"
    Console(stderr=True).print(Text(told, style="dim"), soft_wrap=True)


def authority_certificate(file: Path) -> bytes:
    """Raises FailedPrecondition."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"the mesh's authority cannot be read from {file} ({error.strerror}); pass --authority FILE, the mesh's ca.pem,"
            " which vouches for its workers"
        ) from error


async def asked(worker: ReservedWorker, request: grpc_service_pb2.ModelInferRequest) -> grpc_service_pb2.ModelInferResponse:
    """Raises WorkerUnreachable, and what the worker answers."""
    try:
        return await worker.infer(request, timeout_s=TIMEOUT_S)
    except PenstockError as error:
        if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.code is Code.UNAVAILABLE:
            raise WorkerUnreachable(
                f"worker {worker.place.worker_id} keeps a place but cannot be reached at {worker.place.address} from here;"
                " sealed requests go to workers directly"
            ) from error
        raise
