"""Between the wire's messages and the nouns of stored files."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from penstock.registry.v1 import files_pb2, models_pb2

from registry.files.collection import Collected
from registry.files.completion import Progress
from registry.files.errors import FileUnknown
from registry.files.fetching import OpenFile
from registry.files.types import Begun, FileLimits, UploadId, Usage, Wish
from runtime.errors import InvalidArgument
from runtime.ids import Digest
from runtime.sealed_chunks import CHUNK_BYTES


def files_of_manifest(raw: bytes) -> frozenset[str]:
    """The sha256 of every file a signed manifest lists."""
    try:
        return frozenset(file.sha256 for file in models_pb2.Manifest.FromString(raw).files)
    except DecodeError as error:
        raise FileUnknown("the version's manifest cannot be read; publish it again") from error


def begun_message(begun: Begun, limits: FileLimits) -> files_pb2.BeginUploadResponse:
    if begun.upload is None:
        return files_pb2.BeginUploadResponse(complete=True, part_bytes=limits.part_bytes)
    return files_pb2.BeginUploadResponse(
        upload_id=begun.upload.upload_id, part_bytes=begun.upload.layout.part_bytes, received_parts=begun.received_parts
    )


def part_header_of(message: files_pb2.UploadPartRequest | None) -> tuple[UploadId, int]:
    """Raises InvalidArgument."""
    if message is None or message.WhichOneof("part") != "header":
        raise InvalidArgument("the first message of a part must be its header")
    return UploadId(message.header.upload_id), message.header.number


def data_of(message: files_pb2.UploadPartRequest) -> bytes:
    """Raises InvalidArgument."""
    if message.WhichOneof("part") != "data":
        raise InvalidArgument("a part has one header; data must follow it")
    return message.data


def progress_message(progress: Progress) -> files_pb2.CompleteUploadResponse:
    return files_pb2.CompleteUploadResponse(
        verified_bytes=progress.verified_bytes, size_bytes=progress.size_bytes, complete=progress.complete
    )


def wish_of(request: files_pb2.FetchFileRequest) -> Wish:
    return Wish(Digest(request.sha256), Digest(request.digest), request.first_chunk, request.ed25519_public_key)


def header_message(file: OpenFile) -> files_pb2.FetchFileResponse:
    header = files_pb2.FileHeader(
        size_bytes=file.layout.size_bytes,
        object_id=file.object_id,
        chunk_bytes=CHUNK_BYTES,
        sealed_data_key=file.sealed_data_key,
    )
    return files_pb2.FetchFileResponse(header=header)


def chunk_message(sealed_chunk: bytes) -> files_pb2.FetchFileResponse:
    return files_pb2.FetchFileResponse(sealed_chunk=sealed_chunk)


def collected_message(collected: Collected) -> files_pb2.CollectGarbageResponse:
    return files_pb2.CollectGarbageResponse(
        files=collected.files, uploads=collected.uploads, orphans=collected.orphans, freed_bytes=collected.freed_bytes
    )


def usage_message(usage: Usage) -> files_pb2.TenantStorage:
    return files_pb2.TenantStorage(
        tenant=usage.tenant,
        used_bytes=usage.used_bytes,
        quota_bytes=usage.quota_bytes,
        files=usage.files,
        uploads=usage.uploads,
    )


def rotated_message(done: int, total: int, master_key_id: str) -> files_pb2.RotateMasterKeyResponse:
    return files_pb2.RotateMasterKeyResponse(done=done, total=total, master_key_id=master_key_id)
