"""`penstock models show`: one model as a tree, from plain values.

Turns what registry and scheduler tell into values, and values into a tree that a person reads. Checks that a manifest is the
one that was signed; whom to trust is the consumers' question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2
from rich.filesize import decimal
from rich.text import Text
from rich.tree import Tree

from cli.models import state_name
from cli.profile import Profile
from cli.publish import find_model
from cli.tables import console
from runtime.errors import DataLoss, NotFound
from runtime.identity import node_id_of
from runtime.ids import EVERY_TENANT
from runtime.manifests import verify_manifest

_TENSORS_SHOWN = 64
_FILES_SHOWN = 200


@dataclass(frozen=True, slots=True)
class TensorShown:
    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class FileShown:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DetailShown:
    """What only a version's manifest says."""

    files: tuple[FileShown, ...]
    inputs: tuple[TensorShown, ...]
    outputs: tuple[TensorShown, ...]
    batching: str
    endorsed_by: str = ""
    """Fingerprint of the key that vouches for the signer; empty: the signer is trusted itself."""
    signer_name: str = ""


@dataclass(frozen=True, slots=True)
class VersionShown:
    version: str
    digest: str
    engine: str
    task: str
    size_bytes: int
    published_at_ms: int
    signer_id: str
    withdrawn_at_ms: int = 0
    withdrawn_because: str = ""
    copies: tuple[tuple[str, str], ...] = ()
    """Worker, and the state of its copy."""
    detail: DetailShown | None = None


@dataclass(frozen=True, slots=True)
class AliasShown:
    alias: str
    version: str
    weight: int
    pending_version: str = ""
    pending_weight: int = 0
    pending_since_ms: int = 0
    promotes: str = ""


@dataclass(frozen=True, slots=True)
class ModelShown:
    model: str
    tenant: str
    description: str
    shared_with: tuple[str, ...]
    aliases: tuple[AliasShown, ...] = ()
    versions: tuple[VersionShown, ...] = field(default=())
    """Newest first."""


async def show_model(profile: Profile, name: str, version: str) -> None:
    """The model, its aliases and versions; in full those that have an alias and the newest one, or the one asked for."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        stub = models_pb2_grpc.ModelServiceStub(registry)
        model = await find_model(stub, name)
        if model is None:
            raise NotFound(f"there is no model {name!r}; `penstock models list` shows what there is")
        chosen = _chosen(model, version)
        details = {
            each: await stub.GetVersion(models_pb2.GetVersionRequest(model=name, version=each)) for each in sorted(chosen)
        }
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
    console().print(tree_of(model_shown(model, details, workers, only=version and next(iter(chosen)))))


def _chosen(model: models_pb2.Model, version: str) -> set[str]:
    """Which versions are shown in full. Raises NotFound."""
    numbers = [each.version for each in model.versions]
    if not version:
        live = [each.version for each in model.versions if not each.withdrawn_at_ms]
        return {alias.version for alias in model.aliases if alias.version} | set(sorted(live, key=int)[-1:])
    meant = next((alias.version for alias in model.aliases if alias.alias == version), version)
    if meant not in numbers:
        aliases = ", ".join(alias.alias for alias in model.aliases) or "none"
        there = ", ".join(numbers) or "none"
        raise NotFound(f"model {model.model!r} has no version {version!r}; versions: {there}; aliases: {aliases}")
    return {meant}


def model_shown(
    model: models_pb2.Model,
    details: Mapping[str, models_pb2.GetVersionResponse],
    workers: Iterable[presence_pb2.Presence],
    *,
    only: str = "",
) -> ModelShown:
    """Raises DataLoss, ManifestRefused where a manifest is not what was signed and published."""
    there = list(workers)
    versions = sorted(model.versions, key=lambda each: -int(each.version))
    return ModelShown(
        model=model.model,
        tenant=model.tenant,
        description=model.description,
        shared_with=tuple(sorted(model.shared_with)),
        aliases=tuple(_alias(alias) for alias in sorted(model.aliases, key=lambda each: (each.alias != "stable", each.alias))),
        versions=tuple(_version(each, details.get(each.version), there) for each in versions if only in ("", each.version)),
    )


def _alias(alias: models_pb2.Alias) -> AliasShown:
    pending = alias.pending
    return AliasShown(
        alias.alias, alias.version, alias.weight, pending.version, pending.weight, pending.since_ms, pending.promotes
    )


def _version(
    version: models_pb2.VersionSummary, found: models_pb2.GetVersionResponse | None, workers: list[presence_pb2.Presence]
) -> VersionShown:
    copies = tuple(
        (worker.worker_id, state_name(copy)) for worker in workers for copy in worker.models if copy.digest == version.digest
    )
    return VersionShown(
        version.version,
        version.digest,
        version.engine,
        version.task,
        version.size_bytes,
        version.published_at_ms,
        version.signer_id,
        version.withdrawn_at_ms,
        version.withdrawn_because,
        copies,
        _detail(version, found) if found is not None else None,
    )


def _detail(version: models_pb2.VersionSummary, found: models_pb2.GetVersionResponse) -> DetailShown:
    signed = found.manifest
    verified = verify_manifest(signed, frozenset({signed.ed25519_public_key}))
    if verified.digest != version.digest:
        raise DataLoss(
            f"the registry lists version {version.version} with digest {version.digest} and hands out {verified.digest}"
        )
    manifest, endorsed_by, name = verified.manifest, "", ""
    if found.HasField("endorsement"):
        endorsement = models_pb2.Endorsement.FromString(found.endorsement.endorsement)
        endorsed_by, name = node_id_of(found.endorsement.ed25519_public_key), endorsement.name
    return DetailShown(
        files=tuple(FileShown(file.path, file.size_bytes, file.sha256) for file in manifest.files),
        inputs=tuple(_tensor(tensor) for tensor in manifest.inputs),
        outputs=tuple(_tensor(tensor) for tensor in manifest.outputs),
        batching=batching_words(manifest),
        endorsed_by=endorsed_by,
        signer_name=name,
    )


def _tensor(tensor: models_pb2.TensorSpec) -> TensorShown:
    return TensorShown(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.optional)


def batching_words(manifest: models_pb2.Manifest) -> str:
    """How requests are put together."""
    if not manifest.max_batch_size:
        return "no batch dimension"
    batching = manifest.batching
    words = [f"up to {manifest.max_batch_size} rows"]
    if batching.preferred_batch_sizes:
        words.append(f"preferably {', '.join(str(size) for size in batching.preferred_batch_sizes)}")
    if batching.max_queue_delay_us:
        words.append(f"waits at most {batching.max_queue_delay_us / 1000:g} ms")
    if batching.priority_levels:
        words.append(f"{batching.priority_levels} priorities")
    if manifest.instances > 1:
        words.append(f"{manifest.instances} side by side")
    return ", ".join(words)


def tree_of(model: ModelShown) -> Tree:
    """For a terminal. Names come from others: nothing of them is taken as markup."""
    tree = Tree(Text.assemble((model.model, "bold"), f"  tenant {model.tenant}, {_sharing(model.shared_with)}"))
    if model.description:
        tree.add(Text(model.description, style="italic"))
    aliases = tree.add("aliases" if model.aliases else "no aliases: requests that name no version get the newest one")
    for alias in model.aliases:
        aliases.add(_alias_line(alias))
    for version in model.versions:
        _add_version(tree, version, [alias.alias for alias in model.aliases if alias.version == version.version])
    return tree


def _sharing(shared_with: tuple[str, ...]) -> str:
    if EVERY_TENANT in shared_with:
        return "shared with every tenant"
    return f"shared with {', '.join(shared_with)}" if shared_with else "not shared"


def _alias_line(alias: AliasShown) -> Text:
    line = Text(f"{alias.alias} → ")
    line.append(f"version {alias.version}" if alias.version else "nothing yet")
    if alias.weight:
        line.append(f"  {alias.weight} % of the requests that name no version")
    if alias.pending_version:
        weight = f", {alias.pending_weight} %" if alias.pending_weight else ""
        promotes = f", promotes {alias.promotes}" if alias.promotes else ""
        since = _time(alias.pending_since_ms)
        line.append(f"  (version {alias.pending_version}{weight} is getting warm since {since}{promotes})", style="yellow")
    return line


def _add_version(tree: Tree, version: VersionShown, aliases: list[str]) -> None:
    heading = Text.assemble((f"version {version.version}", "bold"))
    if aliases:
        heading.append(f"  {', '.join(aliases)}", style="green")
    if version.withdrawn_at_ms:
        heading.append(f"  WITHDRAWN {_time(version.withdrawn_at_ms)}: {version.withdrawn_because}", style="red")
    facts = f"{version.engine}, {version.task}, {decimal(version.size_bytes)}, published {_time(version.published_at_ms)}"
    if version.detail is None:
        heading.append(f"  {facts}, {len(version.copies)} copies", style="dim")
        tree.add(heading)
        return
    branch = tree.add(heading)
    branch.add(Text(facts))
    branch.add(Text(f"digest sha256:{version.digest}"))
    branch.add(_signer_line(version.signer_id, version.detail))
    _add_detail(branch, version.detail)
    copies = branch.add("copies" if version.copies else "no copies; `penstock models load` asks for some")
    for worker, state in version.copies:
        copies.add(Text(f"{worker}  {state}"))


def _signer_line(signer_id: str, detail: DetailShown) -> Text:
    name = f" ({detail.signer_name})" if detail.signer_name else ""
    by = f", endorsed by {detail.endorsed_by}" if detail.endorsed_by else ""
    return Text(f"signed by {signer_id}{name}{by}")


def _add_detail(branch: Tree, detail: DetailShown) -> None:
    for title, tensors in (("inputs", detail.inputs), ("outputs", detail.outputs)):
        if tensors:
            _add_bounded(branch.add(title), [_tensor_line(tensor) for tensor in tensors], _TENSORS_SHOWN)
    branch.add(Text(f"batching: {detail.batching}"))
    lines = [Text(f"{file.path}  {decimal(file.size_bytes)}  sha256:{file.sha256}") for file in detail.files]
    _add_bounded(branch.add("files"), lines, _FILES_SHOWN)


def _tensor_line(tensor: TensorShown) -> Text:
    shape = " × ".join("any" if size < 0 else str(size) for size in tensor.shape) or "one value"
    return Text(f"{tensor.name}  {tensor.datatype}  [{shape}]{'  optional' if tensor.optional else ''}")


def _add_bounded(branch: Tree, lines: list[Text], most: int) -> None:
    for line in lines[:most]:
        branch.add(line)
    if len(lines) > most:
        branch.add(f"and {len(lines) - most} more")


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
