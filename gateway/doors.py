"""Composes what applications can ask of a gateway: every service, and which of them take HTTP as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from penstock.gateway.v1 import gateway_pb2, rest_pb2
from xds import discovery_pb2_grpc

from gateway.config import GatewaySettings
from gateway.http.paths import Paths
from gateway.http.refusal import refusal
from gateway.http.server import HttpDoor, HttpLimits
from gateway.jobs.room import Jobs
from gateway.jobs.servicer import SERVICE as JOBS
from gateway.kserve.readiness import Readiness
from gateway.kserve.restrictions import grpc_restrictions, http_restrictions
from gateway.kserve.servicer import SERVICE as KSERVE
from gateway.kserve.servicer import KServeServicer
from gateway.mesh import Mesh
from gateway.openai.servicer import SERVICE as OPENAI
from gateway.openai.servicer import OpenAIServicer
from gateway.request_log.servicer import SERVICE as USAGE
from gateway.request_log.servicer import UsageServicer
from gateway.reservations import SERVICE as RESERVATIONS
from gateway.reservations import ReservationServicer
from gateway.rest.servicer import SERVICE as REST
from gateway.rest.servicer import InferenceRestServicer
from gateway.tracing import span_of_call
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.servicer import DiscoveryServicer
from runtime.clock import SystemClock
from runtime.identity import NodeIdentity
from runtime.serving import Register

HTTP_SERVICES = (
    gateway_pb2.DESCRIPTOR.services_by_name["OpenAIService"],
    rest_pb2.DESCRIPTOR.services_by_name["InferenceRestService"],
)
"""Those whose bodies are google.api.HttpBody both ways; `gateway.xds.descriptors.DIRECT` tells Envoy."""


@dataclass(frozen=True, slots=True)
class Doors:
    """What a gateway serves."""

    registers: Sequence[Register]
    services: Sequence[str]
    http: HttpDoor
    readiness: Readiness


def doors_of(settings: GatewaySettings, identity: NodeIdentity, mesh: Mesh, jobs: Jobs, discovery: DiscoveryServicer) -> Doors:
    """Raises InvalidArgument for restrictions that cannot be read."""
    kserve = KServeServicer(
        mesh,
        strict_readiness=settings.strict_readiness,
        stream_in_flight=settings.stream_in_flight,
        restrictions=grpc_restrictions(settings.grpc_restricted_protocol.get_secret_value()),
    )
    rest = InferenceRestServicer(
        mesh,
        kserve.questions,
        max_bytes=settings.max_message_bytes,
        restrictions=http_restrictions(settings.http_restricted_api.get_secret_value()),
    )
    openai = OpenAIServicer(mesh, jobs.files, jobs.batches)
    reservations = ReservationServicer(
        mesh.callers, mesh.exchanges, mesh.targets, mesh.schedulers, mesh.regions, identity.authority_pem
    )
    usage = UsageServicer(mesh, mesh.log, SystemClock())
    ads = partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, discovery)
    http = HttpDoor(
        Paths(HTTP_SERVICES),
        {OPENAI: openai, REST: rest},
        refusal,
        HttpLimits(settings.max_message_bytes, settings.max_concurrent_rpcs),
        mesh.board.revocations,
        span_of_call if settings.otlp_endpoint is not None else None,
        mesh.callers.identify,  # type: ignore[arg-type]  # of a context it asks what this one can tell
    )
    asked = (kserve.register, rest.register, openai.register, jobs.servicer.register, reservations.register, usage.register)
    registers = (*asked, ads)
    services = (KSERVE, REST, OPENAI, JOBS, RESERVATIONS, USAGE, DISCOVERY)
    return Doors(registers, services, http, kserve.questions.readiness)
