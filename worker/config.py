"""The worker's settings."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from runtime.config import LocatedSettings, Port
from worker.quota import DEFAULT_MAX_IN_FLIGHT, DEFAULT_TENANT_SHARE

LABELS_LIMIT = 32
LABEL_CHARACTERS_LIMIT = 63
_LABEL = re.compile(r"[A-Za-z0-9._/-]+(=[A-Za-z0-9._/-]+)?")


def _cache_dir() -> Path:
    return Path.home() / ".cache" / "penstock" / "worker"


class WorkerSettings(LocatedSettings):
    """What a worker needs to know beyond what every service does."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_implicit_flags=True, cli_prog_name="penstock worker")

    identity_dir: Path | None = Field(  # type: ignore[assignment]  # a standalone worker needs none
        default=None, description="folder with this node's keys and certificate; needed unless standalone"
    )
    registry_address: str = Field(default="127.0.0.1:50051", description="host:port of the registry")
    trusted_signers: Path | None = Field(
        default=None,
        description="file of hex Ed25519 public keys, one a line, whose models are loaded; needed unless standalone",
    )
    code_signers: Path | None = Field(
        default=None,
        description="file of lines '<hex Ed25519 key> <tenant or *>': whose code (engine python) runs for whom; none: nobody's",
    )
    allow_unsigned_code: bool = Field(
        default=False, description="standalone only: run the code of folders as they lie, for whoever calls"
    )
    cache_dir: Path = Field(default_factory=_cache_dir, description="folder for model files; one worker each")
    cache_bytes: int = Field(default=64 * 1024**3, gt=0, description="what the model files there may take")
    volatile_dir: Path | None = Field(
        default=None,
        description="memory-backed folder (tmpfs) for confidential models' files; none: one in /dev/shm where that is a tmpfs",
    )
    volatile_bytes: int | None = Field(
        default=None, gt=0, description="what the files there may take; none: half of the folder's file system"
    )
    tiers: Path | None = Field(default=None, description="TOML file of tiers and their thresholds; none: A to D as documented")
    max_in_flight: int = Field(default=DEFAULT_MAX_IN_FLIGHT, gt=0, description="requests taken at once")
    kserve_port: Port | None = Field(
        default=None,
        description="plaintext KServe port without any admission, for a worker alone; none: off; 0 picks a free one",
    )
    kserve_advertise: str = Field(
        default="", description="host:port at which others reach that port; default: the worker's host, and the port"
    )
    sealed_port: Port | None = Field(
        default=None, description="port on which clients with a reservation talk to this worker alone; none: off; 0: a free one"
    )
    sealed_advertise: str = Field(
        default="", description="host:port at which others reach that port; default: the worker's host, and the port"
    )
    sealed_calls: int = Field(default=128, gt=0, le=4096, description="calls open on that port at once; more are refused")
    sealed_call_bytes: int = Field(default=16 * 1024 * 1024, gt=0, le=1024**3, description="one sealed request at most")
    label: tuple[str, ...] = Field(
        default=(), description="repeatable: what placements and routing rules may ask for, such as spot or rack=7"
    )
    cost: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="what a request here costs beside one elsewhere")
    standalone: bool = Field(default=False, description="serve --model-folder without etcd, registry and scheduler")
    model_folder: tuple[Path, ...] = Field(
        default=(), description="standalone only, repeatable: folder with a model.toml to serve as it lies"
    )
    model_repository: tuple[Path, ...] = Field(
        default=(),
        description="standalone only, repeatable: folder of sub-folders with a model.toml or of Triton's layout",
    )
    memory_bytes: int | None = Field(
        default=None,
        gt=0,
        description="what open models may take together; none: 90 % of the machine's, or of the cgroup's limit",
    )
    loads_at_once: int = Field(default=2, gt=0, le=64, description="models loaded side by side")
    load_attempts: int = Field(
        default=6, gt=0, le=100, description="tries at a load in a row without progress, where the cause of failure may pass"
    )
    load_again_s: float = Field(
        default=60.0, ge=1, le=86_400, description="after so long a load that failed of a cause that may pass is tried again"
    )
    artifact_reads_at_once: int = Field(default=4, gt=0, le=256, description="model files sent to other workers side by side")
    peers_at_most: int = Field(
        default=3, ge=0, le=16, description="workers asked for a model's files before the registry is; 0: none"
    )
    lease_ttl_s: int = Field(default=15, gt=0, description="a worker that is gone is known to be after this time")
    heartbeat_s: float = Field(default=5.0, gt=0)
    leave_grace_s: float = Field(
        default=0.3, ge=0, description="between leaving the fleet and refusing requests, so that gateways hear of it first"
    )
    tenant_share: float = Field(
        default=DEFAULT_TENANT_SHARE,
        gt=0,
        le=1,
        description="part of max_in_flight, and of each model's queue, that a tenant may hold while it is alone; 1: all of it",
    )
    tenant_max_in_flight: int = Field(
        default=0, ge=0, description="requests of one tenant taken at once; 0: as the share allows"
    )
    shared_memory_prefix: str | None = Field(
        default=None,
        description="open clients' POSIX shared memory whose names begin so, on the plaintext KServe port; none: off",
    )
    upstream_keys: Path | None = Field(
        default=None, description="TOML file of the keys for upstream models, and the hosts that each may be sent to"
    )
    upstream_hosts: tuple[str, ...] = Field(
        default=(),
        description="repeatable: host, *.domain, address or range that upstream models may call, beside loopback and keys'",
    )

    @field_validator("label")
    @classmethod
    def _labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        """As they are told: each once, in order."""
        if len(labels) > LABELS_LIMIT:
            raise ValueError(f"{len(labels)} labels; up to {LABELS_LIMIT} are told")
        for label in labels:
            if len(label) > LABEL_CHARACTERS_LIMIT or not _LABEL.fullmatch(label):
                raise ValueError(
                    f"{label[:80]!r} is no label: a name or name=value of letters, digits and . _ / - is expected, up to"
                    f" {LABEL_CHARACTERS_LIMIT} characters"
                )
        return tuple(sorted(set(labels)))
