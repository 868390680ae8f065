"""What `penstock infer --seal` says where it cannot: which file, which worker, in one line."""

from __future__ import annotations

import socket
from pathlib import Path

import nacl.public
import pytest
from inference import grpc_service_pb2

from cli.seal import WorkerUnreachable, asked, authority_certificate
from runtime.errors import FailedPrecondition
from runtime.identity import Authority
from runtime.ids import ModelVersion, Region, WorkerId
from runtime.sealed_client import ReservedWorker, worker_channel
from runtime.sealing import SealedPlace


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_worker_that_keeps_a_place_and_cannot_be_reached_is_named(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca")
    key = bytes(nacl.public.PrivateKey.generate().public_key)
    place = SealedPlace(WorkerId("a" * 20), Region("here"), f"127.0.0.1:{closed_port()}", key)
    async with worker_channel(place, authority.certificate_pem) as channel:
        worker = ReservedWorker(f"{place.worker_id}/hold", ModelVersion("1"), 0.0, place, b"t" * 32, channel)
        with pytest.raises(WorkerUnreachable, match=f"worker {place.worker_id} keeps a place .* {place.address}"):
            await asked(worker, grpc_service_pb2.ModelInferRequest(model_name="m"))


def test_an_authority_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"none\.pem .*--authority"):
        authority_certificate(tmp_path / "none.pem")
