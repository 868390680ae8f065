"""The worker's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from runtime.config import Port, ServiceSettings
from worker.inference import DEFAULT_MAX_IN_FLIGHT


def _cache_dir() -> Path:
    return Path.home() / ".cache" / "penstock" / "worker"


class WorkerSettings(ServiceSettings):
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
    cache_dir: Path = Field(default_factory=_cache_dir, description="folder for model files; one worker each")
    cache_bytes: int = Field(default=64 * 1024**3, gt=0, description="what the model files there may take")
    tiers: Path | None = Field(default=None, description="TOML file of tiers and their thresholds; none: A to D as documented")
    max_in_flight: int = Field(default=DEFAULT_MAX_IN_FLIGHT, gt=0, description="requests taken at once")
    kserve_port: Port | None = Field(
        default=None,
        description="plaintext KServe port without any admission, for a worker alone; none: off; 0 picks a free one",
    )
    standalone: bool = Field(default=False, description="serve --model-folder without etcd, registry and scheduler")
    model_folder: tuple[Path, ...] = Field(
        default=(), description="standalone only, repeatable: folder with a model.toml to serve as it lies"
    )
    loads_at_once: int = Field(default=2, gt=0, description="models loaded side by side")
    lease_ttl_s: int = Field(default=15, gt=0, description="a worker that is gone is known to be after this time")
    heartbeat_s: float = Field(default=5.0, gt=0)
    leave_grace_s: float = Field(
        default=0.3, ge=0, description="between leaving the fleet and refusing requests, so that gateways hear of it first"
    )
