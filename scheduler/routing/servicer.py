"""FleetService.Explain and the routing policy on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import Unavailable, Unimplemented
from scheduler.routing import codec
from scheduler.routing.explaining import Explainer
from scheduler.routing.store import RoutingPolicies

Context = grpc.aio.ServicerContext[Any, Any]


class RoutingServicer:
    """Its part of FleetService."""

    def __init__(self, policies: RoutingPolicies | None = None, explainer: Explainer | None = None) -> None:
        self._policies, self._explainer = policies, explainer

    async def Explain(self, request: scheduler_pb2.ExplainRequest, context: Context) -> scheduler_pb2.ExplainResponse:
        if self._explainer is None:
            raise Unimplemented("this scheduler explains nothing; ask another one")
        return codec.answer_message(await self._explainer.explain(codec.question_of(request)))

    async def GetRoutingPolicy(
        self, request: scheduler_pb2.GetRoutingPolicyRequest, context: Context
    ) -> scheduler_pb2.GetRoutingPolicyResponse:
        policy = self._kept().known
        if policy is None:
            raise Unavailable(
                "this scheduler has not reached etcd yet; try again, and check etcd if it goes on", retry_after_s=1.0
            )
        return scheduler_pb2.GetRoutingPolicyResponse(routing_policy=codec.policy_message(policy))

    async def SetRoutingPolicy(
        self, request: scheduler_pb2.SetRoutingPolicyRequest, context: Context
    ) -> scheduler_pb2.SetRoutingPolicyResponse:
        expected = request.expected_generation if request.HasField("expected_generation") else None
        made = await self._kept().replace(codec.policy_of(request.routing_policy), expected)
        return scheduler_pb2.SetRoutingPolicyResponse(routing_policy=codec.policy_message(made))

    def _kept(self) -> RoutingPolicies:
        if self._policies is None:
            raise Unimplemented("this scheduler keeps no routing policy; ask another one")
        return self._policies
