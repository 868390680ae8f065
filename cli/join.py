"""`penstock join`: makes this machine's keys, shows a join token to the registry, keeps the certificate it gets.

Can be repeated after a crash at any point: keys that are there are kept, and the registry answers the same token and key again.
Never sends a private key anywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import nodes_pb2, nodes_pb2_grpc

from runtime.channel import channel_options
from runtime.enrolment import CertificateRefused, check_answer, same_authority, signed_request
from runtime.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from runtime.identity import NodeIdentity, Role, keys_in, load_identity, node_id_of, server_name, write_public
from runtime.join_line import JoinLine, read_join_line
from runtime.status import error_of

_TIMEOUT_S = 20.0
_MESSAGE_BYTES = 64 * 1024
_MACHINE_FILES = (Path("/sys/class/dmi/id/product_uuid"), Path("/etc/machine-id"))


async def join(line: str, folder: Path, hosts: Sequence[str], machine_files: Sequence[Path] = _MACHINE_FILES) -> NodeIdentity:
    """Become a node of the mesh that the line is from. Raises a PenstockError; what is in the folder then is kept."""
    token = read_join_line(line)
    await asyncio.to_thread(_check_folder, folder, token)
    signing_key, tls_key_pem = await asyncio.to_thread(keys_in, folder)
    request = signed_request(signing_key, tls_key_pem, token.token_id)
    answer = await _enrolled(
        token,
        nodes_pb2.EnrolRequest(
            token_id=token.token_id,
            token_secret=token.secret,
            ed25519_public_key=request.ed25519_public_key,
            certificate_request=request.certificate_request,
            signature=request.signature,
            hosts=hosts,
            hardware_fingerprint=await asyncio.to_thread(read_fingerprint, machine_files),
        ),
    )
    node_id = node_id_of(request.ed25519_public_key)
    certificate = check_answer(answer.certificate_pem, token.authority_pem, node_id, tls_key_pem)
    if not same_authority(answer.authority_pem, token.authority_pem):
        raise CertificateRefused("the registry belongs to another mesh than the token; nothing was changed")
    return await asyncio.to_thread(_keep, folder, token.authority_pem, certificate.pem)


def own_hosts() -> tuple[str, ...]:
    """What this machine is called, for its certificate, where nobody says."""
    return (socket.gethostname(), "localhost", "127.0.0.1", "::1")


def read_fingerprint(files: Sequence[Path]) -> str:
    """Of the machine, whatever is installed on it; empty where it has none that may be read."""
    for file in files:
        try:
            content = file.read_text().strip().lower()
        except (OSError, UnicodeError):
            continue
        if content:
            return hashlib.sha256(f"penstock-hardware-v1\n{content}".encode()).hexdigest()
    return ""


def _check_folder(folder: Path, token: JoinLine) -> None:
    """A folder belongs to one mesh: the certificate of one beside the authority of another serves nobody."""
    authority_file = folder / "ca.pem"
    if authority_file.exists() and not same_authority(authority_file.read_bytes(), token.authority_pem):
        raise FailedPrecondition(f"{folder} is an identity of another mesh; join this one with another --identity-dir")


def _keep(folder: Path, authority_pem: bytes, certificate_pem: bytes) -> NodeIdentity:
    write_public(folder / "ca.pem", authority_pem)
    write_public(folder / "tls.pem", certificate_pem)  # last: with it the identity is whole
    return load_identity(folder)


async def _enrolled(token: JoinLine, request: nodes_pb2.EnrolRequest) -> nodes_pb2.EnrolResponse:
    """The first registry's answer that gives one. Asking two with the same token and key is no harm."""
    for address in token.addresses:
        try:
            return await _asked(address, token.authority_pem, request)
        except (Unavailable, DeadlineExceeded):
            continue
    raise Unavailable(
        f"no registry of this mesh answers at {', '.join(token.addresses)}; look at the network between, and run the same again"
    )


async def _asked(address: str, authority_pem: bytes, request: nodes_pb2.EnrolRequest) -> nodes_pb2.EnrolResponse:
    credentials = grpc.ssl_channel_credentials(authority_pem)
    options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY)), *channel_options(_MESSAGE_BYTES)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            answer = await nodes_pb2_grpc.NodeServiceStub(channel).Enrol(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
    return answer
