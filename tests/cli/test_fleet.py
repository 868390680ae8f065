"""`penstock fleet explain` and `policy`, against a scheduler on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.scheduler.v1 import scheduler_pb2 as pb
from penstock.scheduler.v1 import scheduler_pb2_grpc
from typer.testing import CliRunner

from cli.__main__ import app
from cli.fleet_explain import show_explanation
from cli.fleet_policy import policy_in, set_policy, show_policy, toml_of
from cli.profile import Profile
from cli.run import clear_line
from placement.types import CopyState, Load
from placement.view import FleetView
from runtime.clock import SystemClock
from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.ids import WorkerId
from runtime.memory_store import MemoryStore
from runtime.serving import Listen, serving
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.routing.explaining import Explainer
from scheduler.routing.servicer import RoutingServicer
from scheduler.routing.store import RoutingPolicies
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from tests.placement.fleets import copy, worker
from tests.scheduler.mesh import HERE, Mesh
from tests.scheduler.routing.test_servicer import Seen
from tests.support.waiting import eventually

RULES = """
[[rules]]
name = "cheap at night"
tenants = ["acme", "other-*"]
strategy = "cost"
weights = { session = 1.5, gpu = 0 }
shadow_strategy = "latency"
deny = [{ labels = ["spot"], tiers = ["D"] }]
cross_region = false
priority_class = 2
flags = { "a flag" = true }
fallbacks = ["other", "digits@2"]
fallback_on = ["overload"]
hedge_quantile = 0.95
sticky_versions = true
auto_models = ["small-*", "large"]
"""


@pytest.fixture
async def profile(tmp_path: Path) -> AsyncIterator[Profile]:
    clock = SystemClock()
    mesh = Mesh(tmp_path, clock)
    view = FleetView().with_changes(
        [worker("a", copy(), capacity=4), worker("b", copy(), capacity=4), worker("c", copy(CopyState.LOADING))]
    )
    seen = Seen(view, {WorkerId("a"): Load(foreign_in_flight=2)})
    async with MemoryStore() as store:
        scheduler, policies = Scheduler(store, mesh.reader(), clock, Random(1)), RoutingPolicies(store, clock)
        explainer = Explainer(seen, seen, lambda: policies.current, HERE, Random(2))
        rooms = Rooms(routing=RoutingServicer(policies, explainer))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE), rooms)
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        mesh.node("operator", Role.OPERATOR)
        async with (
            serving([listen], [register], SERVICES, drain_grace_s=0.1) as running,
            policies.running(),
            scheduler.running(),
        ):
            await eventually(lambda: policies.known is not None)
            yield Profile("", "", "", "", f"127.0.0.1:{running.ports[0]}", str(tmp_path / "operator"), HERE)


async def test_explain_shows_every_candidate_and_why_it_lost(profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    await show_explanation(profile, pb.ExplainRequest(model="digits"), 20)
    shown = capsys.readouterr().out
    assert "digits 1 → b: best score" in shown
    assert "strategy affinity, by no rule" in shown
    assert "0.5 behind, most of all by occupancy" in shown
    assert "0.5 → -0.5" in shown
    assert "ready: LOADING" in shown
    await show_explanation(profile, pb.ExplainRequest(model="digits"), 1)
    assert "and 2 more; --limit 3 shows them" in capsys.readouterr().out
    await show_explanation(profile, pb.ExplainRequest(model="absent"), 20)
    assert "absent → nobody: UNKNOWN_MODEL" in capsys.readouterr().out


async def test_a_policy_is_shown_changed_and_set(profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await show_policy(profile)
    assert "There are no rules yet" in capsys.readouterr().out
    file = tmp_path / "policy.toml"
    file.write_text(RULES)
    await set_policy(profile, file, force=False)
    assert "1 rule in force, generation 1" in capsys.readouterr().out
    await show_policy(profile)
    file.write_text(shown := capsys.readouterr().out)
    assert policy_in(shown.encode(), "") == policy_in(b"generation = 1\n" + RULES.encode(), "")
    await show_explanation(profile, pb.ExplainRequest(model="digits", tenant="acme"), 20)
    explained = capsys.readouterr().out
    assert "strategy cost, by cheap at night" in explained
    assert "shadow latency → " in explained

    await set_policy(profile, file, force=False)
    with pytest.raises(Exception, match="generation 2, not 1") as late:
        await set_policy(profile, file, force=False)
    assert "read it and decide again" in (clear_line(late.value) or "")
    await set_policy(profile, file, force=True)
    assert "generation 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rules]]\nstratgy = 'cost'", "policy.toml: .*stratgy"),
        ("[[rules]]\nshare = 'much'", "policy.toml: .*share"),
        ("[[rules", "policy.toml: "),
        ("name = '\xff'", "policy.toml: .*utf-8"),
        ("rules = 3", "policy.toml: .*rules"),
        ("[[rules]]\nshare = -1", "policy.toml: .*share"),
    ],
)
def test_a_file_that_is_no_policy_is_said_to_be_none(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        policy_in(text.encode("latin-1"), "policy.toml")


words = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
selectors = st.builds(
    pb.WorkerSelector,
    worker_ids=st.lists(words, max_size=2),
    labels=st.lists(words, max_size=2),
    tiers=st.lists(words, max_size=1),
)


@given(
    st.builds(
        pb.RoutingPolicy,
        generation=st.integers(0, 2**63 - 1),
        rules=st.lists(
            st.builds(
                pb.RoutingRule,
                name=words,
                tenants=st.lists(words, max_size=2),
                weights=st.none() | st.builds(pb.Weights, gpu=st.floats(0, 100), cost=st.none() | st.floats(0, 1)),
                deny=st.lists(selectors, max_size=2),
                cross_region=st.none() | st.booleans(),
                priority_class=st.none() | st.integers(0, 2),
                share=st.integers(0, 9),
                flags=st.dictionaries(words, st.booleans(), max_size=2),
                fallbacks=st.lists(words, max_size=2),
                fallback_on=st.lists(words, max_size=2),
                hedge_quantile=st.none() | st.floats(0, 1),
                sticky_versions=st.none() | st.booleans(),
                auto_models=st.lists(words, max_size=2),
            ),
            max_size=3,
        ),
    )
)
def test_what_is_shown_can_be_set(policy: pb.RoutingPolicy) -> None:
    assert policy_in(toml_of(policy).encode(), "") == policy


def test_fleet_alone_still_shows_the_workers(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fleet", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "no mesh is known" in result.output
