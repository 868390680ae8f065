"""Which hosts upstream models may call from this worker, and with which keys. The operator's word, not the publisher's.

A model's signed files name a host and a secret; the worker's operator says which hosts are called at all, which secrets there
are, and to which hosts each may be sent. So a publisher can neither have a key sent to a host of his own nor read a variable
of the environment. Never logs a key and never puts one into a sentence.

The file of keys, readable by nobody but its owner and group:

    [openai]
    key_env = "OPENAI_API_KEY"          # or key = "…", or key_file = "/run/secrets/openai"
    hosts = ["api.openai.com"]

A host is a name, `*.` and a name, an address or a range of addresses, each with an optional port. `http://` in front of it says
that it may be called without TLS.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import Code, PenstockError
from worker.remote.upstream_hosts import HostPattern, HostRefused, Origin, allows, is_loopback, parse_pattern

_FIELDS = {"key", "key_env", "key_file", "hosts"}
_SOURCES = ("key", "key_env", "key_file")
_MAX_FILE_BYTES = 64 * 1024
_MAX_KEY_CHARACTERS = 4096


class KeysRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="UPSTREAM_KEYS_REFUSED"):
    """The file of keys cannot be used, or lacks what a model names."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One key and where it may go."""

    name: str
    key: str = field(repr=False)
    hosts: tuple[HostPattern, ...]


@dataclass(frozen=True, slots=True)
class UpstreamAccess:
    """The worker's settings about upstreams. Files are read when a model is opened, so that a changed key needs no restart."""

    keys_file: Path | None = None
    hosts: tuple[str, ...] = ()

    def admit(self, origin: Origin, key_name: str, where: str) -> Secret | None:
        """The secret to call this origin with; None where none is named. Blocks: reads files.

        Raises HostRefused for an origin that may not be called, KeysRefused for a secret that is not there.
        """
        secrets = read_keys(self.keys_file, os.environ) if self.keys_file else {}
        secret = secrets.get(key_name)
        if key_name and secret is None:
            known = ", ".join(sorted(secrets)) or "none"
            raise KeysRefused(f"{where} names key {key_name!r}; the keys of this worker (upstream_keys) are: {known}")
        if secret is not None:
            _check(origin, secret.hosts, where, f"the hosts of key {key_name!r}")
            return secret
        listed = tuple(parse_pattern(text, "setting upstream_hosts") for text in self.hosts)
        named = tuple(pattern for each in secrets.values() for pattern in each.hosts)
        if not is_loopback(origin):  # without a key, what listens on this machine may be asked
            _check(origin, (*listed, *named), where, "upstream_hosts or the hosts of a key")
        return None


def read_keys(file: Path, environment: Mapping[str, str]) -> Mapping[str, Secret]:
    """The secrets by name. Raises KeysRefused, never with a key in its sentence."""
    try:
        content = tomllib.loads(_private_text(file))
    except tomllib.TOMLDecodeError as error:  # its sentence names the place and not what stands there
        raise KeysRefused(f"{file} is no TOML: {error}") from None
    secrets = {}
    for name, table in content.items():
        if not isinstance(table, dict):
            raise KeysRefused(f"{file} has a value {name!r} outside of a table; write [{name}] with a key and hosts")
        secrets[name] = _secret(file, name, table, environment)
    return secrets


def _secret(file: Path, name: str, table: Mapping[str, object], environment: Mapping[str, str]) -> Secret:
    where = f"[{name}] in {file}"
    if unknown := sorted(set(table) - _FIELDS):
        raise KeysRefused(f"{where} has the field {unknown[0]!r}; the fields are: {', '.join(sorted(_FIELDS))}")
    hosts = table.get("hosts")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
        raise KeysRefused(f"{where} needs hosts, a list of the hosts that this key may be sent to")
    given = [(source, table[source]) for source in _SOURCES if source in table]
    if len(given) != 1 or not isinstance(given[0][1], str):
        raise KeysRefused(f"{where} needs one of {', '.join(_SOURCES)}, a string; it has {len(given)} of them")
    source, text = given[0]
    key = _key(where, source, str(text), environment)
    if not 0 < len(key) <= _MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
        raise KeysRefused(f"the key of {where} is empty, too long, or has characters that no HTTP header may have")
    return Secret(name, key, tuple(parse_pattern(host, where) for host in hosts))


def _key(where: str, source: str, text: str, environment: Mapping[str, str]) -> str:
    if source == "key":
        return text
    if source == "key_file":
        return _private_text(Path(text)).strip()
    if text not in environment:
        raise KeysRefused(f"{where} takes its key from the environment variable {text!r}, which is not set")
    return environment[text].strip()


def _private_text(file: Path) -> str:
    """The file's text. Raises KeysRefused where others could read it or have written it."""
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            # The group may read: that is how Kubernetes gives a secret to a process that is not root.
            if mode & 0o027:
                raise KeysRefused(f"{file} has mode {mode:04o}; keys are for its owner alone: chmod 600 {file}")
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysRefused(f"{file} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise KeysRefused(f"{file} has more than {_MAX_FILE_BYTES} bytes; that is no file of keys")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise KeysRefused(f"{file} is not UTF-8") from None


def _check(origin: Origin, patterns: tuple[HostPattern, ...], where: str, listed_in: str) -> None:
    allowed = [pattern for pattern in patterns if allows(pattern, origin)]
    if not allowed:
        raise HostRefused(f"{where} calls {origin.host!r}, which is not among {listed_in}; an operator has to list it there")
    if not origin.plain_http or origin.private or any(pattern.plain_http for pattern in allowed):
        return
    raise HostRefused(
        f"{where} calls {origin.host!r} without TLS; use https, or list it as 'http://{origin.host}' among {listed_in}"
    )
