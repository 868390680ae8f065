"""GET /v1/models: what answers, and what will when somebody asks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.openai.catalogue import Catalogue, ModelNotServed
from placement.copies.wishes import Placement
from runtime.ids import Digest, ModelName, ModelVersion, Region
from tests.gateway.openai.mesh import FixedRegistry, small_fleet


def wish(model: str, version: str = "1", *, copies: int = 0) -> Placement:
    return Placement(ModelName(model), ModelVersion(version), Digest(f"d-{model}"), Region("local"), copies, 1, max_copies=2)


def catalogue(*wishes: Placement) -> Catalogue:
    return Catalogue(replace(small_fleet(), on_demand=wishes), FixedRegistry(), lambda: 100.0)


async def listed(found: Catalogue) -> list[str]:
    return [each["id"] for each in json.loads(await found.all(lambda _: True))["data"]]


async def test_a_model_on_demand_is_listed_before_any_copy_is_there() -> None:
    found = catalogue(wish("asleep"), wish("asleep", "2"), wish("sums"), wish("late", copies=1))
    assert await listed(found) == ["able", "asleep", "digits", "sums", "vectors", "words"]
    assert json.loads(await found.one("asleep", "asleep", ""))["id"] == "asleep"


async def test_its_task_is_the_registry_s_to_say() -> None:
    found = Catalogue(
        replace(small_fleet(), on_demand=(replace(wish("asleep"), digest=Digest("d-sums")),)), FixedRegistry(), lambda: 100.0
    )
    assert json.loads(await found.one("asleep", "asleep", ""))["task"] == "chat"


async def test_what_the_key_may_not_see_is_not_listed() -> None:
    shown = json.loads(await catalogue(wish("asleep")).all(lambda model: model != "asleep"))["data"]
    assert "asleep" not in [each["id"] for each in shown]


async def test_a_version_that_nobody_wishes_for_is_not_served() -> None:
    with pytest.raises(ModelNotServed):
        await catalogue(wish("asleep", "2")).one("asleep@1", "asleep", "1")
