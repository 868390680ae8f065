"""What a model says of itself, from its manifest and its engine through presence to those who choose among models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2

import gateway.codec
import scheduler.codec
from runtime.ids import Digest
from runtime.model_traits import LOGIT_BIAS, LOGPROBS, PENALTIES, RESUME, TOOLS
from tests.worker.markov import CONTEXT_LENGTH, language_spec, markov
from tests.worker.onnx_models import identity, spec
from tests.worker.test_spec import manifest
from worker.copies import open_model
from worker.engine import ModelRefused
from worker.kserve.model_config import config_of
from worker.life.lifecycle import Copy, Holdings
from worker.presence_codec import copy_message
from worker.spec import spec_of
from worker.traits import NO_TRAITS, Traits
from worker.types import Task

ALL = Traits(frozenset({TOOLS, RESUME}), cacheable=True, context_tokens=4096, cost_per_million_tokens=1.5)


def test_a_manifest_tells_them() -> None:
    told = manifest(
        capabilities=[RESUME, TOOLS, "of a later release"],
        response_cache=True,
        context_tokens=4096,
        cost_per_million_tokens=1.5,
    )
    assert spec_of(told, Digest("d" * 64)).traits == ALL
    assert spec_of(manifest(), Digest("d" * 64)).traits == NO_TRAITS


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"response_cache": True, "confidential": True}, "confidential"),
        ({"response_cache": True, "decoupled": True}, "decoupled"),
        ({"response_cache": True, "sequence_batching": models_pb2.SequenceBatching()}, "sequences"),
        ({"cost_per_million_tokens": -1.0}, "cost_per_million_tokens"),
        ({"cost_per_million_tokens": float("inf")}, "cost_per_million_tokens"),
    ],
)
def test_refusals(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        spec_of(manifest(**changed), Digest("d" * 64))


async def test_an_engine_tells_what_the_manifest_leaves_open(tmp_path: Path) -> None:
    loaded = await open_model(language_spec(), markov(tmp_path))
    try:
        assert loaded.spec.traits == Traits(frozenset({LOGIT_BIAS, LOGPROBS, PENALTIES, RESUME}), context_tokens=CONTEXT_LENGTH)
    finally:
        loaded.close()


async def test_the_manifest_goes_before_the_engine(tmp_path: Path) -> None:
    said = Traits(frozenset({TOOLS}), cacheable=True, context_tokens=8)
    loaded = await open_model(replace(language_spec(), traits=said), markov(tmp_path))
    try:
        assert loaded.spec.traits == said
    finally:
        loaded.close()


async def test_a_tensor_model_has_what_its_manifest_says(tmp_path: Path) -> None:
    said = Traits(cacheable=True)
    loaded = await open_model(replace(spec(), traits=said), identity(tmp_path, "FP32"))
    try:
        assert loaded.spec.traits == said
    finally:
        loaded.close()


@pytest.mark.parametrize("traits", [NO_TRAITS, ALL], ids=["none", "all"])
def test_gateways_and_schedulers_read_what_workers_tell(traits: Traits) -> None:
    known = spec()
    holdings = Holdings()
    copy = holdings.add(Copy(known.model, known.version, known.digest, 1))
    holdings.describe(copy, task=Task.TENSOR, max_batch_size=8, traits=traits)
    presence = presence_pb2.Presence(worker_id="w", models=[copy_message(copy)])
    for read in (gateway.codec.worker_of, scheduler.codec.worker_of):
        (found,) = read(presence).copies
        assert (found.capabilities, found.cacheable) == (traits.capabilities, traits.cacheable)
        assert found.context_tokens == traits.context_tokens
        assert found.cost_per_million_tokens == traits.cost_per_million_tokens


def test_perf_analyzer_is_told_of_a_cache() -> None:
    assert config_of(replace(spec(), traits=ALL)).response_cache.enable
    assert not config_of(spec()).HasField("response_cache")
