"""Composes what a gateway has to do with jobs: those it does itself, and those that applications ask for.

Owns the way to the schedulers that keep them. Where those keep none, everything here says so.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.config import GatewaySettings
from gateway.jobs.execution import Execution
from gateway.jobs.keepers import reached
from gateway.jobs.peers import JobsClient
from gateway.jobs.runner import JobRunner, RunnerSettings
from gateway.jobs.servicer import JobServicer
from gateway.mesh import Mesh
from gateway.openai.peers import BatchesClient, FilesClient
from runtime.clock import SystemClock
from runtime.identity import NodeIdentity
from runtime.ids import Region


@dataclass(frozen=True, slots=True)
class Jobs:
    """What the servicers are made of, and who does the work."""

    runner: JobRunner
    servicer: JobServicer
    files: FilesClient
    batches: BatchesClient


@asynccontextmanager
async def jobs_room(settings: GatewaySettings, identity: NodeIdentity, mesh: Mesh) -> AsyncIterator[Jobs]:
    """Does jobs until left. `runner.wind_down()` beforehand lets them end while the server drains."""
    async with reached(settings.scheduler_addresses, identity) as keepers:
        rules = RunnerSettings(at_once=settings.jobs_at_once, drain_grace_s=settings.drain_grace_s)
        source = JobsClient(keepers, Region(settings.region))
        runner = JobRunner(source, Execution(mesh), SystemClock(), random.SystemRandom(), rules)
        async with runner.running():
            yield Jobs(runner, JobServicer(mesh, keepers), FilesClient(keepers), BatchesClient(keepers))
