"""What may be kept of a request's words: JSON without secrets, addresses, long numbers, tensors and files, shortened.

Pure. Works on the parsed document, so that no spelling of a string hides what is in it. What is no JSON, or longer than is
worth reading, is not kept at all: only its size is.
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST_READ_BYTES = 64 * 1024
MOST_KEPT_CHARACTERS = 8 * 1024
_MOST_NUMBERS = 16
"""A longer list of numbers is a tensor."""

_SECRET_NAMES = re.compile(
    r"pass(word|wd|phrase)|secret|credential|authori[sz]ation|api[-_ ]?key|private[-_ ]?key|access[-_ ]?key|\btoken$|[-_]token$"
    r"|bearer|cookie",
    re.IGNORECASE,
)
"""A member with such a name holds what nobody else should read. `max_tokens` and `token_ids` are no such names."""

_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]{1,40}-----.*?(?:-----END [A-Z ]{1,40}-----|\Z)", re.DOTALL), "[secret]"),
    (re.compile(r"\bdata:[\w/+.;=-]{0,100},[A-Za-z0-9+/=_%-]*"), "[data]"),
    (re.compile(r"\beyJ[\w-]{4,}\.[\w-]{4,}\.?[\w-]*"), "[secret]"),  # JSON Web Tokens
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), "[secret]"),
    (re.compile(r"(?i)\b((?:api[-_ ]?key|password|passwd|secret|token)\s*[:=]\s*)[^\s,;\"']{4,}"), r"\1[secret]"),
    (re.compile(r"(?i)(://[^\s/:@]{0,80}:)[^\s/@]{1,200}@"), r"\1[secret]@"),  # in URLs
    (re.compile(r"\b(?:sk|pk|rk|ghp|gho|ghs|ghu|hf|xox[abpors]|glpat|AKIA|ASIA|AIza)[-_]?[A-Za-z0-9][\w-]{11,}"), "[secret]"),
    (re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), "[email]"),
    (re.compile(r"\+?\d(?:[ ./()-]{0,2}\d){7,}"), "[number]"),  # cards, accounts, telephones
    (re.compile(r"[A-Za-z0-9+/=_-]{64,}"), "[blob]"),
)


def redacted(body: bytes) -> str:
    """At most MOST_KEPT_CHARACTERS."""
    if len(body) > MOST_READ_BYTES:
        return f"[{len(body)} bytes]"
    try:
        document = json.loads(body)
        kept = json.dumps(_cleaned(document), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return f"[{len(body)} bytes that are no JSON]"
    return _storable(kept)


def redacted_text(text: str) -> str:
    """Without what looks like a secret, an address, a long number or a file."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return value if abs(value) < 10**7 else "[number]"
    if isinstance(value, list):
        return f"[{_count(value)} numbers]" if _is_tensor(value) else [_cleaned(each) for each in value]
    return {redacted_text(name): _member(name, each) for name, each in value.items()}


def _member(name: str, value: Any) -> Any:
    return "[secret]" if value and _SECRET_NAMES.search(name) else _cleaned(value)


def _is_tensor(values: list[Any]) -> bool:
    return _count(values) > _MOST_NUMBERS and _has_only_numbers(values)


def _count(values: list[Any]) -> int:
    return sum(_count(each) if isinstance(each, list) else 1 for each in values)


def _has_only_numbers(values: list[Any]) -> bool:
    return all(_has_only_numbers(each) if isinstance(each, list) else isinstance(each, int | float) for each in values)


def _storable(text: str) -> str:
    text = text.replace("\x00", "�").encode("utf-8", "replace").decode()
    return text if len(text) <= MOST_KEPT_CHARACTERS else text[: MOST_KEPT_CHARACTERS - 1] + "…"
