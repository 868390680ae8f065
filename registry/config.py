"""The registry's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from runtime.config import ServiceSettings


class RegistrySettings(ServiceSettings):
    """What the registry needs to know beyond what every service does."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_prog_name="penstock registry")

    database: str = Field(repr=False, description="path of an SQLite file, or a URL such as postgresql://user@host/name")
    objects_dir: Path = Field(description="folder for the files of models")
    trusted_signers: Path = Field(description="file of hex Ed25519 public keys, one a line, whose manifests are accepted")
    bootstrap_key_file: Path | None = Field(
        default=None, description="the first admin key is written here when the database is empty"
    )
    max_file_bytes: int = Field(default=64 * 1024**3, gt=0)
    max_uploads: int = Field(default=16, gt=0, description="uploads under way at once")
    upload_silence_s: float = Field(default=30.0, gt=0, description="an upload that sends nothing for so long is ended")
    partial_lifetime_s: float = Field(default=7 * 86_400.0, gt=0, description="parts not gone on with for so long are dropped")
    max_key_watches: int = Field(default=256, gt=0)
    key_watch_backlog: int = Field(default=1024, gt=0, description="changed keys a watcher may leave unread")
