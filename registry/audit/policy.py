"""What may be asked of the trail and told to it, and how it is written down. Pure."""

from __future__ import annotations

import re

from registry.audit.types import EntryWish, Incident
from runtime.ids import TenantId

DEFAULT_ENTRIES = 100
MAX_ENTRIES = 1000
MAX_DETAIL_CHARACTERS = 500
_MAX_FILTER_CHARACTERS = 256
_MAX_ENTRY = 2**63 - 1
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,54}")  # with `incident.` it fits the column
_WORDS = re.compile(r"[A-Z][a-z0-9]*")
_READS = frozenset({"Get", "List", "Resolve", "Stat", "Watch", "Who"})
_NAMED_OTHERWISE = {"RollBackAlias": "alias.roll_back", "LogIn": "login", "LogOut": "logout"}
"""Methods whose verb is two words."""
_NAMES_OF_SUBJECTS = (
    *("key_id", "user_id", "node_id", "token_id", "signer_id", "upload_id", "limit_id"),
    *("model", "sha256", "name", "tenant"),
)


def shown(text: str, characters: int) -> str:
    """As it can stand in a column and on a terminal: cut, and without what cannot be printed (PostgreSQL takes no NUL)."""
    cut = text[:characters]
    return cut if cut.isprintable() else "".join(letter if letter.isprintable() else "�" for letter in cut)


def wish_faults(wish: EntryWish) -> list[str]:
    """All that keeps these entries from being listed."""
    asked = {"tenant": wish.tenant or "", "actor_id": wish.actor_id, "action": wish.action, "subject": wish.subject}
    faults = [
        f"{name}: up to {_MAX_FILTER_CHARACTERS} printable characters are allowed"
        for name, text in asked.items()
        if len(text) > _MAX_FILTER_CHARACTERS or not text.isprintable()
    ]
    if wish.limit > MAX_ENTRIES:
        faults.append(f"limit {wish.limit}: at most {MAX_ENTRIES} entries are listed at once; page on with `before`")
    if wish.before > _MAX_ENTRY:
        faults.append(f"before {wish.before}: there is no such entry")
    return faults


def whose(wanted: TenantId | None, own: TenantId | None) -> TenantId | None:
    """Whose entries are listed: those asked for, else all that the caller may see (None: everybody's and the mesh's own)."""
    return wanted or own


def incident_faults(incident: Incident) -> list[str]:
    if _REASON.fullmatch(incident.reason):
        return []
    return [f"reason {shown(incident.reason, 40)!r}: the error's reason is expected, such as MANIFEST_REFUSED"]


def is_read(method: str) -> bool:
    """Whether an RPC only looks, by its name: refusing that leaves no entry. Fetching is not looking: it hands out keys."""
    return _words(method)[:1] in ([word] for word in _READS)


def action_of(method: str) -> str:
    """How the trail calls an RPC: `CreateKey` is `key.create`."""
    if method in _NAMED_OTHERWISE:
        return _NAMED_OTHERWISE[method]
    verb, *nouns = _words(method) or [method]
    return f"{'_'.join(nouns).lower()}.{verb.lower()}" if nouns else verb.lower()


def subject_of(fields: dict[str, str]) -> str:
    """What a request is about, by the names that requests give it."""
    return next((fields[name] for name in _NAMES_OF_SUBJECTS if fields.get(name)), "")


def _words(method: str) -> list[str]:
    return _WORDS.findall(method)
