"""Whether a text model can do what a request asks of it. Pure.

The gateway looks at what copies say of themselves before it sends a request; here it is looked at again, because requests come
by other ways too, and none is to be answered with less than it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from runtime.errors import CapabilityLacking
from runtime.model_traits import JSON, JSON_SCHEMA, LOGIT_BIAS, LOGPROBS, PENALTIES, TOOLS
from worker.engine import TextRequest
from worker.types import ModelSpec


def check_capabilities(spec: ModelSpec, request: TextRequest) -> None:
    """Raises CapabilityLacking."""
    for name, asks in _needed(request):
        if name not in spec.traits.capabilities:
            raise CapabilityLacking(
                f"model {spec.model!r} does not have the capability {name!r}, which {asks} asks for; leave that out, or ask a"
                " model that has it"
            )


def _needed(request: TextRequest) -> Iterator[tuple[str, str]]:
    """Capabilities, and what asks for them."""
    sampling, use = request.sampling, request.tool_use
    if request.top_logprobs is not None:
        yield LOGPROBS, "'logprobs'"
    if sampling.frequency_penalty or sampling.presence_penalty:
        yield PENALTIES, "a penalty"
    if request.logit_bias:
        yield LOGIT_BIAS, "'logit_bias'"
    if use.tools_json or _speaks_of_tools(request):
        yield TOOLS, "'tools'"
    if use.response_format_json:
        yield _format(use.response_format_json), "'response_format'"


def _speaks_of_tools(request: TextRequest) -> bool:
    prompt = request.prompt
    return not isinstance(prompt, str) and any(turn.tool_calls_json or turn.tool_call_id for turn in prompt)


def _format(response_format_json: str) -> str:
    try:
        kind = json.loads(response_format_json).get("type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CapabilityLacking("'response_format' is no JSON object; send one as OpenAI's API has it") from error
    return JSON if kind == "json_object" else JSON_SCHEMA
