"""Which settings make a worker of a mesh, which one that serves alone, and what is said of those that make none."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import FailedPrecondition, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.hardware import TiersRefused
from worker.life.lifecycle import Holdings
from worker.membership import Membership, membership_of
from worker.models import ModelTable
from worker.standalone import check_alone

TRUSTED = "ab" * 32


def identity_of(folder: Path, role: Role) -> NodeIdentity:
    return Authority.open(folder / "ca").enrol(folder / role.value, role)


def settings_of(folder: Path, **settings: object) -> WorkerSettings:
    (folder / "trusted").write_text(f"{TRUSTED}\n")
    return WorkerSettings.model_validate({"trusted_signers": folder / "trusted", **settings})


def made(settings: WorkerSettings, identity: NodeIdentity | None) -> Membership | None:
    return membership_of(settings, identity, ModelTable(), Holdings(), open_model)


def test_with_an_identity_and_trusted_signers_it_is_a_member(tmp_path: Path) -> None:
    assert made(settings_of(tmp_path), identity_of(tmp_path, Role.WORKER)) is not None
    assert made(settings_of(tmp_path, host="0.0.0.0", advertise="w1:5000"), identity_of(tmp_path, Role.WORKER)) is not None


def test_alone_it_is_none_also_with_an_identity(tmp_path: Path) -> None:
    assert made(WorkerSettings(standalone=True, kserve_port=0), None) is None
    assert made(WorkerSettings(standalone=True, kserve_port=0), identity_of(tmp_path, Role.WORKER)) is None


def test_what_is_missing_or_wrong_is_named_with_what_to_do(tmp_path: Path) -> None:
    worker, gateway = identity_of(tmp_path, Role.WORKER), identity_of(tmp_path, Role.GATEWAY)
    (tmp_path / "wrong").write_text("no key\n")
    cases: list[tuple[dict[str, object], NodeIdentity | None, type[PenstockError], str]] = [
        ({}, None, FailedPrecondition, "pass --identity-dir, or --standalone"),
        ({}, gateway, FailedPrecondition, "is that of a gateway"),
        ({"trusted_signers": None}, worker, FailedPrecondition, "pass --trusted-signers FILE"),
        ({"trusted_signers": tmp_path / "wrong"}, worker, FailedPrecondition, "cannot read the trusted signers"),
        ({"host": "0.0.0.0"}, worker, FailedPrecondition, "pass --advertise HOST:PORT"),
        ({"tiers": tmp_path / "wrong"}, worker, TiersRefused, "cannot read the tiers"),
    ]
    for changes, identity, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            made(settings_of(tmp_path, **changes), identity)


def test_folders_are_for_a_worker_alone_and_one_alone_needs_a_port(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="pass --standalone too"):
        check_alone(settings_of(tmp_path, model_folder=(tmp_path,)))
    with pytest.raises(FailedPrecondition, match="pass --kserve-port, or --identity-dir"):
        check_alone(WorkerSettings(standalone=True))
    check_alone(WorkerSettings(standalone=True, kserve_port=0, model_folder=(tmp_path,)))
    check_alone(WorkerSettings(standalone=True, identity_dir=tmp_path))
