"""The gateway's settings."""

from __future__ import annotations

import enum
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from gateway.request_log.types import KeptBodies
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
    response_cache_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=0,
        description="what answers may take that are kept for models with response_cache; 0: none are kept",
    )
    response_cache_ttl_s: float = Field(
        default=3600.0, ge=0, description="how long an answer is given again; 0: as long as there is room"
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
    request_log: str = Field(
        default="",
        repr=False,
        description="SQLite file, or a URL such as postgresql://user@host/name, for an entry about each request; none: off",
    )
    request_log_retention_days: float = Field(
        default=30.0, gt=0, le=3_650, description="how long entries are kept; sums by day are kept for 400 days"
    )
    request_log_bodies: KeptBodies = Field(
        default=KeptBodies.OFF,
        description="redacted: entries hold what was said in JSON, without secrets, addresses and long numbers, and shortened",
    )
    request_log_queue_rows: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="entries that wait while the log's database is slow or away; more are dropped and counted",
    )
    jobs_at_once: int = Field(default=8, ge=0, le=1024, description="jobs that this gateway does at once; 0: none")
    grpc_restricted_protocol: SecretStr = Field(
        default=SecretStr(""),
        description="group,…:key=value;… as Triton has it: calls of these groups need the header triton-grpc-protocol-<key>",
    )
    http_restricted_api: SecretStr = Field(
        default=SecretStr(""), description="likewise for HTTP below /v2, where the header is <key> itself"
    )
    strict_readiness: bool = Field(default=True, description="ServerReady is false while a model that should be loaded is not")
    max_message_bytes: int = Field(default=64 * 1024 * 1024, gt=0, description="one request or answer at most")
    max_concurrent_rpcs: int = Field(default=4096, gt=0, description="calls open at once; more are refused")
    stream_in_flight: int = Field(default=64, gt=0, description="requests of one ModelStreamInfer stream answered at once")
    streams_per_worker: int = Field(default=1, ge=1, le=8, description="Execute streams to each worker")
    worker_silence_s: float = Field(
        default=3.0,
        ge=1.0,
        le=60.0,
        description="how long a worker that owes answers may say nothing before its calls go to others that have the model",
    )
    http_host: str = Field(default="127.0.0.1", description="IP address on which Envoy listens for applications")
    http_port: Port | None = Field(default=None, description="port on which Envoy listens; none: Envoy is told nothing")
    door_port: Port = Field(default=0, description="inner port on which Envoy brings HTTP; 0 picks a free one")
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins whose pages may call through Envoy, such as https://app.example.org; *: any"
    )
    http_certificate: Path | None = Field(
        default=None, description="PEM chain for TLS on Envoy's port, as Envoy sees it; read again when it is replaced"
    )
    http_key: Path | None = Field(default=None, description="PEM key of that certificate")
    http_access_log: str = Field(
        default="", description="file for a JSON line about each request through Envoy; /dev/stdout: its output; empty: none"
    )
    drain_notice_s: float = Field(
        default=2.0, ge=0, le=60.0, description="how long Envoys may take to hear that this gateway is about to end"
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=8,  # a scheduler takes so many streams of demand from one identity: `scheduler.demand.intake`
        description="gateway processes: they share the edge port, and each has its own inner and metrics port, counted up"
        " from --port and --metrics-port",
    )
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
