"""The gateway's settings."""

from __future__ import annotations

import enum
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from placement.types import Strategy
from runtime.config import LocatedSettings, Port


class Auth(enum.Enum):
    """Whether applications have to show an API key."""

    REQUIRED = "required"
    OFF = "off"
    """Everybody may do everything: for a trusted machine."""


class CallerRegion(enum.Enum):
    """From which region requests are routed that name none."""

    OWN = "own"
    """The gateway's."""
    ADDRESS = "address"
    """That of the caller's address."""


class GatewaySettings(LocatedSettings):
    """What the gateway needs to know beyond what every service does. `port` is for Envoy, `edge_port` for applications."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock gateway")

    edge_host: str = Field(default="127.0.0.1", description="address on which applications reach the gateway's own gRPC")
    edge_port: Port = Field(default=8001, description="gRPC port for applications; 0 picks a free one")
    edge_certificate: Path | None = Field(default=None, description="PEM chain for TLS on the edge port; none: plaintext")
    edge_key: Path | None = Field(default=None, description="PEM key of that certificate")
    scheduler_address: str = Field(
        pattern=r"^[^,\s]+:\d+(,[^,\s]+:\d+)*$", description="host:port,… of the schedulers: all that lead regions of this mesh"
    )
    registry_address: str = Field(description="host:port of the registry")
    trusted_signers: Path | None = Field(
        default=None,
        description="file of hex Ed25519 public keys whose models are believed; none: a load with 'config' alone is refused",
    )
    auth: Auth = Field(default=Auth.REQUIRED, description="required: applications show an API key; off: everybody may all")
    strategy: Strategy = Field(default=Strategy.AFFINITY, description="how workers are chosen")
    cold_wait_s: float = Field(default=10.0, ge=0, description="how long a request waits for a copy that is being loaded")
    capacity_waiters: int = Field(
        default=1024,
        ge=0,
        description="requests that wait at the scheduler for a place at once; more are refused; 0: none waits",
    )
    capacity_wait_s: float = Field(
        default=60.0, gt=0, description="how long a request waits at the scheduler for a place at most"
    )
    cross_region: bool = Field(
        default=False,
        description="requests may go to other regions where theirs has no place; a routing rule may say otherwise",
    )
    allow_region_header: bool = Field(
        default=False, description="callers may say by metadata x-penstock-region which region they are to be routed from"
    )
    caller_region: CallerRegion = Field(
        default=CallerRegion.OWN,
        description="where requests are routed from: own: the gateway's region; address: that of the caller's IP address, by"
        " --region-overrides and --geolocation-database, where workers are there",
    )
    proxies_before_envoy: int = Field(
        default=0, ge=0, le=16, description="trusted proxies before Envoy that append their caller to x-forwarded-for"
    )
    load_wait_s: float = Field(default=120.0, gt=0, description="how long RepositoryModelLoad waits where no deadline is set")
    load_copies: int = Field(default=2, ge=1, description="copies that RepositoryModelLoad asks for")
    jobs_at_once: int = Field(default=8, ge=0, le=1024, description="jobs that this gateway does at once; 0: none")
    strict_readiness: bool = Field(default=True, description="ServerReady is false while a model that should be loaded is not")
    max_message_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="one request or answer at most")
    max_concurrent_rpcs: int = Field(default=4096, gt=0, description="calls open at once; more are refused")
    stream_in_flight: int = Field(default=64, gt=0, description="requests of one ModelStreamInfer stream answered at once")
    streams_per_worker: int = Field(default=1, ge=1, le=8, description="Execute streams to each worker")
    http_host: str = Field(default="127.0.0.1", description="IP address on which Envoy listens for applications")
    http_port: Port | None = Field(default=None, description="port on which Envoy listens; none: Envoy is told nothing")
    registry_endpoints: str = Field(
        default="", description="ip:port,… of the registry's replicas, for Envoy; default: registry_address, where it is one"
    )
    registry_front_port: Port | None = Field(
        default=None, description="port on which Envoy offers the registry to nodes (mTLS); none: not at all"
    )
    envoy_identity_dir: Path | None = Field(default=None, description="folder with Envoy's keys, as Envoy sees it")

    @property
    def scheduler_addresses(self) -> tuple[str, ...]:
        """Each once, in the order given."""
        return tuple(dict.fromkeys(self.scheduler_address.split(",")))
