"""Embeddings from the fleet: texts or token ids → vectors → JSON.

Decides which input and output of a model are meant (the first of each), how many rows go into one request, and whether a model
is for embeddings at all.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.exchange import Exchange
from gateway.links.types import CallContext
from gateway.openai.codec import Vectors, infer_request, raw_texts, raw_tokens, vectors_of
from gateway.openai.errors import AnswerUnusable, RequestRefused
from gateway.openai.types import Dispatch, Signature, TensorShape, VectorsAsked
from placement.types import ANY_REGION, Request
from runtime.ids import ModelName, ModelVersion, Region

_AT_ONCE = 4
"""Requests of one call that are under way together."""

_VALUES_AT_ONCE = 16_384
"""Floats rendered before others get their turn: some 10 ms."""


async def vectors(
    dispatch: Dispatch,
    asked: VectorsAsked,
    version: ModelVersion,
    signature: Signature,
    max_rows: int,
    call: CallContext,
    exchange: Exchange,
    region: Region = ANY_REGION,
) -> list[Vectors]:
    """Arrays of rows, in the order of what was asked. `max_rows`: of one execution, 0 = the model has no batch dimension.
    `region`: where it is asked from; any: the gateway's own.

    All of them come from one version: vectors of two models are not to be compared.
    """
    source, output = _source(asked, signature), _output(asked.model, signature)
    batches = _batches(asked, source, max_rows)
    places, request = asyncio.Semaphore(_AT_ONCE), Request(ModelName(asked.model), version, region)

    async def infer(tensor: TensorShape, raw: bytes, rows: int) -> Vectors:
        async with places:
            payload = infer_request(asked.model, "", tensor, raw, output)
            answer = await dispatch.infer(request, payload, call, exchange)
            exchange.answering(len(answer))
            return vectors_of(answer, output, rows)

    exchange.used(sum(len(each) for each in asked.token_ids), 0)
    if len(batches) == 1:
        return [_checked(asked, await infer(*batches[0]))]
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(infer(*batch)) for batch in batches]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return [_checked(asked, task.result()) for task in running]


async def rendered(asked: VectorsAsked, model: str, arrays: Sequence[Vectors]) -> bytes:
    """The whole answer of `model`. Gives others their turn on the way: a large one takes a second to write as decimals."""
    parts: list[bytes] = []
    values = 0
    for array in arrays:
        for row in array:
            content = base64.b64encode(row.tobytes()).decode() if asked.base64 else row.tolist()
            parts.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (len(parts), json.dumps(content).encode()))
            values += row.size
            if values >= _VALUES_AT_ONCE:
                values = 0
                await asyncio.sleep(0)
    # How many tokens a text has only the model knows, and a tensor model does not say.
    tokens = sum(len(each) for each in asked.token_ids)
    tail = json.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}).encode()
    return b'{"object":"list","data":[' + b",".join(parts) + b"]," + tail[1:]


def _source(asked: VectorsAsked, signature: Signature) -> TensorShape:
    if not signature.inputs:
        raise AnswerUnusable(f"model {asked.model!r} describes no inputs")
    source = signature.inputs[0]
    kind, needed = ("texts", "BYTES") if asked.texts else ("token ids", "INT64")
    if source.datatype != needed:
        raise RequestRefused(
            f"'input' holds {kind}, but the first input of model {asked.model!r} takes {source.datatype}, not {needed}",
            param="input",
            fault="unsupported_value",
        )
    return source


def _output(model: str, signature: Signature) -> str:
    for output in signature.outputs:
        if output.datatype == "FP32":
            return output.name
    raise RequestRefused(
        f"model {model!r} has no FP32 output, so it gives no embeddings", param="model", fault="unsupported_model"
    )


def _batches(asked: VectorsAsked, source: TensorShape, max_rows: int) -> list[tuple[TensorShape, bytes, int]]:
    """Tensors with their bytes and rows, as few as the model allows."""
    if asked.token_ids:
        return [_row_of_tokens(source, each, max_rows) for each in asked.token_ids]
    variable = bool(source.shape) and source.shape[0] == -1
    rows = max_rows or (len(asked.texts) if variable else 1)
    if any(size > 1 for size in source.shape[1:]) or (not variable and source.shape and source.shape[0] > 1):
        raise RequestRefused(
            f"model {asked.model!r} takes {list(source.shape)} texts for one embedding; one for each is what this call sends",
            param="model",
            fault="unsupported_model",
        )
    batches = []
    for start in range(0, len(asked.texts), rows):
        texts = asked.texts[start : start + rows]
        shape = (len(texts), *(1 for _ in source.shape[1:])) if source.shape else ()
        batches.append((replace(source, shape=shape), raw_texts(texts), len(texts)))
    return batches


def _row_of_tokens(source: TensorShape, token_ids: Sequence[int], max_rows: int) -> tuple[TensorShape, bytes, int]:
    # Texts differ in length and padding is the model's own affair: each goes by itself, and the worker batches what fits.
    shape = (1, len(token_ids)) if max_rows or len(source.shape) == 2 else (len(token_ids),)
    return replace(source, shape=shape), raw_tokens(token_ids), 1


def _checked(asked: VectorsAsked, array: Vectors) -> Vectors:
    width = int(np.shape(array)[1])
    if asked.dimensions is not None and asked.dimensions != width:
        raise RequestRefused(
            f"'dimensions' is {asked.dimensions}; model {asked.model!r} gives {width} and cannot be asked for others",
            param="dimensions",
            fault="unsupported_value",
        )
    return array
