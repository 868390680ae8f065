"""What may be said of a model besides what it takes and gives: what it can be asked, what it costs, whether answers hold.

Decides which words there are, and of which models an answer may be given again. A response cache stands for a model, so it is
only for those whose answers depend on nothing but the request, and that are known whole when they are kept.
"""

from __future__ import annotations

from collections.abc import Collection

TOOLS, JSON, JSON_SCHEMA = "tools", "json", "json_schema"
LOGPROBS, PENALTIES, LOGIT_BIAS = "logprobs", "penalties", "logit_bias"
RESUME = "resume"
"""A generation that another copy began can be gone on with."""

CAPABILITIES = (TOOLS, JSON, JSON_SCHEMA, LOGPROBS, PENALTIES, LOGIT_BIAS, RESUME)
"""What may be asked of a model beyond its task. A manifest names some of them, or leaves it to the engine."""

_TEXT_TASKS = ("chat", "completion")


def unknown_capabilities(names: Collection[str]) -> list[str]:
    """Those that mean nothing here."""
    return sorted(set(names) - set(CAPABILITIES))


def cache_fault(task: str, *, sequences: bool, decoupled: bool, confidential: bool) -> str:
    """Why no answer of such a model may be given again, to follow "response_cache"; empty: it may."""
    if sequences:
        return "is not for a model with sequences, whose answers depend on the requests before"
    if decoupled and task not in _TEXT_TASKS:
        return "is not for a decoupled model, which gives several responses to a request"
    if confidential:
        return "is not for a confidential model, whose answers nobody is to keep"
    return ""
