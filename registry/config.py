"""The registry's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from runtime.config import Port, ServiceSettings


class RegistrySettings(ServiceSettings):
    """What the registry needs to know beyond what every service does."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock registry")

    database: str = Field(repr=False, description="path of an SQLite file, or a URL such as postgresql://user@host/name")
    objects: str = Field(description="folder for the files of models, or a URL such as s3://bucket/prefix")
    master_keys: Path = Field(
        description="file of the keys that wrap data keys and seal rows; made at the very first start. Keep it apart from"
        " database and objects: with it they can be read, without it they cannot"
    )
    trusted_signers: Path = Field(description="file of hex Ed25519 public keys, one a line, whose signatures are believed")
    authority_dir: Path | None = Field(
        default=None, description="folder with the mesh's certificate authority; none: this replica enrols and renews nobody"
    )
    registry_address: str = Field(
        default="", description="host:port of a registry with an authority, for a replica that has none: renews its certificate"
    )
    certificate_days: int = Field(default=90, ge=1, le=397, description="lifetime of certificates that are issued")
    public_host: str = Field(default="127.0.0.1", description="address of the public port")
    public_port: Port | None = Field(
        default=None, description="port for nodes that enrol and people with a session or key: TLS without a client certificate"
    )
    join_addresses: str = Field(default="", description="host:port,… that a join token names; default: the public port")
    bootstrap_key_file: Path | None = Field(
        default=None, description="the first owner's key is written here when the database is empty"
    )
    max_file_bytes: int = Field(default=1024**4, gt=0)
    parts_at_once: int = Field(default=4, gt=0, description="parts of uploads held in memory at once, 8 MiB each")
    max_uploads: int = Field(default=1_024, gt=0, description="uploads begun and not ended, of all tenants")
    max_uploads_per_tenant: int = Field(default=64, gt=0)
    upload_silence_s: float = Field(default=30.0, gt=0, description="a part that sends nothing for so long is ended")
    upload_lifetime_s: float = Field(default=7 * 86_400.0, gt=0, description="uploads not gone on with for so long are dropped")
    garbage_grace_s: float = Field(default=86_400.0, gt=0, description="files that no version names are kept for so long")
    collect_every_s: float = Field(default=3_600.0, gt=0, description="how often garbage is collected")
