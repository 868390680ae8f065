"""Which settings make a worker of a mesh, which one that serves alone, and what is said of those that make none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.config import read_settings
from runtime.errors import FailedPrecondition, InvalidArgument, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.hardware import TiersRefused
from worker.life.lifecycle import Holdings
from worker.membership import Membership, membership_of, told_address
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


def test_others_are_told_where_ports_are_reached() -> None:
    here, behind = WorkerSettings(), WorkerSettings(host="0.0.0.0", advertise="gpu1.example.org:5000")
    named = WorkerSettings(sealed_advertise="edge.example.org:443")
    assert told_address(here, None, "edge:1") == ""
    assert told_address(here, 7) == "127.0.0.1:7"
    assert told_address(behind, 7) == "gpu1.example.org:7"
    assert told_address(named, 7, named.sealed_advertise) == "edge.example.org:443"
    assert told_address(WorkerSettings(host="::1"), 7) == "[::1]:7"
    assert told_address(WorkerSettings(host="::", advertise="[fd00::1]:5000"), 7) == "[fd00::1]:7"


def test_labels_are_told_each_once_in_order() -> None:
    labels = ("spot", "rack=7", "spot", "a/b.c-d_e=x/1")
    assert WorkerSettings(label=labels).label == ("a/b.c-d_e=x/1", "rack=7", "spot")
    words = ["--label", "spot", "--label", "rack=7", "--cost", "2.5"]
    settings = read_settings(WorkerSettings, words)
    assert (settings.label, settings.cost) == (("rack=7", "spot"), 2.5)


@pytest.mark.parametrize("label", ["", "a b", "=7", "rack=", "a=b=c", "ä", "x" * 64, "rack=7\n", "a,b"])
def test_what_is_no_label_is_named(label: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--label: .*is no label: a name or name=value"):
        read_settings(WorkerSettings, [f"--label={json.dumps([label])}"])


def test_labels_and_cost_are_bounded() -> None:
    with pytest.raises(InvalidArgument, match="33 labels; up to 32"):
        read_settings(WorkerSettings, [f"--label=l{number}" for number in range(33)])
    for cost in ("0", "-1", "inf", "nan"):
        with pytest.raises(InvalidArgument, match="--cost"):
            read_settings(WorkerSettings, [f"--cost={cost}"])


def test_a_sealed_port_needs_a_key_to_seal_to(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="--sealed-port needs --identity-dir"):
        check_alone(WorkerSettings(standalone=True, kserve_port=0, sealed_port=0))
    check_alone(WorkerSettings(identity_dir=tmp_path, sealed_port=0))


def test_folders_are_for_a_worker_alone_and_one_alone_needs_a_port(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="pass --standalone too"):
        check_alone(settings_of(tmp_path, model_folder=(tmp_path,)))
    with pytest.raises(FailedPrecondition, match="pass --kserve-port, or --identity-dir"):
        check_alone(WorkerSettings(standalone=True))
    check_alone(WorkerSettings(standalone=True, kserve_port=0, model_folder=(tmp_path,)))
    check_alone(WorkerSettings(standalone=True, identity_dir=tmp_path))
