"""One model as a tree, from plain values; and values from what the registry says, checked."""

from __future__ import annotations

import io

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2
from rich.console import Console

from cli.show import AliasShown, DetailShown, FileShown, ModelShown, TensorShown, VersionShown, model_shown, tree_of
from runtime.errors import DataLoss
from runtime.identity import node_id_of
from runtime.manifests import ManifestRefused, digest_of, sign_endorsement, sign_manifest

KEY, ROOT = nacl.signing.SigningKey(b"k" * 32), nacl.signing.SigningKey(b"r" * 32)
AT_MS = 1_700_000_000_000

DETAIL = DetailShown(
    files=(FileShown("model.onnx", 1_500_000, "f" * 64), FileShown("labels/[red].txt", 12, "e" * 64)),
    inputs=(TensorShown("image", "FP32", (3, -1, -1)), TensorShown("scale", "FP32", (), optional=True)),
    outputs=(TensorShown("scores", "FP32", (1000,)),),
    batching="up to 8 rows",
    endorsed_by="0123456789",
    signer_name="CI of acme",
)
MODEL = ModelShown(
    "resnet",
    "acme",
    "what [b]it[/b] sees",
    ("globex",),
    (
        AliasShown("stable", "1", 0, "2", 0, AT_MS, "canary"),
        AliasShown("canary", "2", 10),
        AliasShown("next", "", 0, "3", 5, AT_MS),
    ),
    (
        VersionShown("3", "c" * 64, "onnx", "tensor", 5, AT_MS, "9" * 20, AT_MS, "it leaks"),
        VersionShown("2", "b" * 64, "onnx", "tensor", 1_500_012, AT_MS, "9" * 20, copies=(("w1", "READY"),), detail=DETAIL),
    ),
)


def shown(model: ModelShown, width: int = 140) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(tree_of(model))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.strip("│├└─ ").rstrip() for line in text.splitlines()]


def test_the_tree() -> None:
    lines = shown(MODEL)
    assert lines == [
        "resnet  tenant acme, shared with globex",
        "what [b]it[/b] sees",
        "aliases",
        "stable → version 1  (version 2 is getting warm since 2023-11-14 22:13 UTC, promotes canary)",
        "canary → version 2  10 % of the requests that name no version",
        "next → nothing yet  (version 3, 5 % is getting warm since 2023-11-14 22:13 UTC)",
        "version 3  WITHDRAWN 2023-11-14 22:13 UTC: it leaks  onnx, tensor, 5 bytes, published 2023-11-14 22:13 UTC, 0 copies",
        "version 2  canary",
        "onnx, tensor, 1.5 MB, published 2023-11-14 22:13 UTC",
        f"digest sha256:{'b' * 64}",
        f"signed by {'9' * 20} (CI of acme), endorsed by 0123456789",
        "inputs",
        "image  FP32  [3 × any × any]",
        "scale  FP32  [one value]  optional",
        "outputs",
        "scores  FP32  [1000]",
        "batching: up to 8 rows",
        "files",
        f"model.onnx  1.5 MB  sha256:{'f' * 64}",
        f"labels/[red].txt  12 bytes  sha256:{'e' * 64}",
        "copies",
        "w1  READY",
    ]


def test_a_model_of_ten_thousand_files_stays_readable() -> None:
    files = tuple(FileShown(f"{number}.bin", 1, "f" * 64) for number in range(10_000))
    version = VersionShown("1", "b" * 64, "onnx", "tensor", 1, AT_MS, "s", detail=DetailShown(files, (), (), "none"))
    lines = shown(ModelShown("m", "default", "", (), (), (version,)))
    assert "and 9800 more" in lines
    assert len(lines) < 250


def described() -> tuple[models_pb2.Model, models_pb2.GetVersionResponse]:
    manifest = models_pb2.Manifest(
        model="digits",
        version="1",
        max_batch_size=8,
        instances=2,
        files=[models_pb2.ManifestFile(path="a", sha256="f" * 64, size_bytes=3)],
        inputs=[models_pb2.TensorSpec(name="x", datatype="INT64", shape=[-1])],
        batching=models_pb2.Batching(max_queue_delay_us=1_500, preferred_batch_sizes=[2, 4], priority_levels=3),
    )
    signed = sign_manifest(KEY, manifest)
    summary = models_pb2.VersionSummary(version="1", digest=digest_of(signed), signer_id=node_id_of(bytes(KEY.verify_key)))
    model = models_pb2.Model(model="digits", tenant="acme", shared_with=["*"], versions=[summary])
    endorsement = models_pb2.Endorsement(tenant="acme", name="CI", ed25519_public_key=bytes(KEY.verify_key))
    found = models_pb2.GetVersionResponse(version=summary, manifest=signed, endorsement=sign_endorsement(ROOT, endorsement))
    return model, found


def test_what_the_registry_says_becomes_values() -> None:
    model, found = described()
    digest = model.versions[0].digest
    copy = worker_pb2.ModelCopy(digest=digest, state=worker_pb2.MODEL_STATE_FAILED, reason="no [memory]")
    told = model_shown(model, {"1": found}, [presence_pb2.Presence(worker_id="w", models=[copy])])
    [version] = told.versions
    assert version.copies == (("w", "FAILED (no [memory])"),)
    assert version.detail == DetailShown(
        files=(FileShown("a", 3, "f" * 64),),
        inputs=(TensorShown("x", "INT64", (-1,)),),
        outputs=(),
        batching="up to 8 rows, preferably 2, 4, waits at most 1.5 ms, 3 priorities, 2 side by side",
        endorsed_by=node_id_of(bytes(ROOT.verify_key)),
        signer_name="CI",
    )
    assert "shared with every tenant" in shown(told)[0]


def test_a_manifest_that_was_altered_or_is_another_is_not_shown() -> None:
    model, found = described()
    found.manifest.manifest = found.manifest.manifest[:-1] + b"\x00"
    with pytest.raises(ManifestRefused):
        model_shown(model, {"1": found}, [])
    model, found = described()
    model.versions[0].digest = "0" * 64
    with pytest.raises(DataLoss, match="hands out"):
        model_shown(model, {"1": found}, [])
