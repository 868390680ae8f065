"""What `penstock storage …` does, against the registry's files."""

from __future__ import annotations

import re

from penstock.registry.v1 import files_pb2, files_pb2_grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import InvalidArgument

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")


async def show_storage(profile: Profile, tenant: str) -> None:
    """What each tenant has stored, and may."""
    async with profile.registry_channel() as registry:
        stub = files_pb2_grpc.FileServiceStub(registry)
        answer = await stub.GetStorage(files_pb2.GetStorageRequest(tenant=tenant))
    shown = table("tenant", "used", "quota", "files", "uploads")
    for each in answer.tenants:
        # As text: rich would read markup in a name.
        cells = (each.tenant, size_text(each.used_bytes), _quota_text(each.quota_bytes), str(each.files), str(each.uploads))
        shown.add_row(*map(Text, cells))
    console().print(shown)


async def set_quota(profile: Profile, tenant: str, quota_bytes: int) -> None:
    async with profile.registry_channel() as registry:
        stub = files_pb2_grpc.FileServiceStub(registry)
        answer = await stub.SetQuota(files_pb2.SetQuotaRequest(tenant=tenant, quota_bytes=quota_bytes))
    stored = answer.storage
    console().print(Text(f"{stored.tenant} has {size_text(stored.used_bytes)} of {_quota_text(stored.quota_bytes)}"))


async def collect_garbage(profile: Profile, *, dry_run: bool) -> None:
    """Delete what nobody needs, or say what that would be."""
    async with profile.registry_channel() as registry:
        stub = files_pb2_grpc.FileServiceStub(registry)
        answer = await stub.CollectGarbage(files_pb2.CollectGarbageRequest(dry_run=dry_run))
    what = f"files: {answer.files}, uploads: {answer.uploads}, stray objects: {answer.orphans}"
    verb = "would be" if dry_run else "were"
    console().print(Text(f"{size_text(answer.freed_bytes)} {verb} freed ({what})"))


async def rotate_master_key(profile: Profile) -> None:
    """Put everything under the newest master key."""
    columns = (TextColumn("under the new key"), BarColumn(), MofNCompleteColumn())
    master_key_id = ""
    async with profile.registry_channel() as registry:
        stub = files_pb2_grpc.FileServiceStub(registry)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None)
            async for step in stub.RotateMasterKey(files_pb2.RotateMasterKeyRequest()):
                progress.update(task, completed=step.done, total=step.total)
                master_key_id = step.master_key_id
    console().print(
        Text(f"everything is under master key {master_key_id}; older keys may be removed from the registry's key file")
    )


def size_of(text: str) -> int:
    """Bytes, from a text such as 500MB, 20GiB or 0. Raises InvalidArgument."""
    found = _SIZE.match(text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise InvalidArgument(f"size {text!r}: a number and a unit are expected, such as 500MB, 20GiB, or 0 for no limit")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def size_text(size_bytes: int) -> str:
    """As people read it: three digits or so."""
    size, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _quota_text(quota_bytes: int) -> str:
    return size_text(quota_bytes) if quota_bytes else "no limit"
