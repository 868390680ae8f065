"""Where a mesh is and how to speak to it: `client.json` in a data folder, written by `penstock up`, read by the
client commands.

Owns that file and the channels made from it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio

from runtime.channel import channel_options, inner_channel
from runtime.errors import Code, PenstockError
from runtime.identity import Role, load_identity, write_secret

DEFAULT_DATA = Path(".penstock")
_MESSAGE_BYTES = 256 * 1024 * 1024


class NoMesh(PenstockError, code=Code.FAILED_PRECONDITION, reason="NO_MESH"):
    """There is nothing to talk to."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One mesh, as its operator reaches it."""

    grpc_address: str
    http_url: str
    api_key: str
    registry_address: str
    scheduler_address: str
    operator_identity: str
    region: str

    def write(self, data: Path) -> None:
        """Only the owner may read it: it holds a key."""
        write_secret(data / "client.json", json.dumps(asdict(self), indent=1).encode())

    def gateway_channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.grpc_address, options=channel_options(_MESSAGE_BYTES))

    def registry_channel(self) -> grpc.aio.Channel:
        return self._inner(self.registry_address, Role.REGISTRY)

    def scheduler_channel(self) -> grpc.aio.Channel:
        return self._inner(self.scheduler_address, Role.SCHEDULER)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the gateway wants to see."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def _inner(self, address: str, role: Role) -> grpc.aio.Channel:
        if not address:
            raise NoMesh(f"no {role.value} address is known; run this where `penstock up` keeps its data, or pass --data")
        return inner_channel(address, load_identity(Path(self.operator_identity)), role)


def data_folder(given: Path | None) -> Path:
    """The folder asked for, else `PENSTOCK_DATA`, else `.penstock` here."""
    return given or Path(os.environ.get("PENSTOCK_DATA", DEFAULT_DATA))


def read_profile(data: Path | None, *, address: str = "", url: str = "", key: str = "") -> Profile:
    """The mesh of this data folder, with what was given explicitly put over it. Raises NoMesh."""
    folder = data_folder(data)
    try:
        known = Profile(**json.loads((folder / "client.json").read_text()))
    except FileNotFoundError as error:
        if not (address or url):
            raise NoMesh(f"no mesh is known in {folder}; start one with `penstock up`, or pass --data or --address") from error
        known = Profile("", "", os.environ.get("PENSTOCK_API_KEY", ""), "", "", "", "")
    except (OSError, ValueError, TypeError) as error:
        raise NoMesh(f"{folder / 'client.json'} cannot be read: {error}; `penstock up` writes it anew") from error
    changed = asdict(known)
    changed.update({k: v for k, v in (("grpc_address", address), ("http_url", url), ("api_key", key)) if v})
    return Profile(**changed)
