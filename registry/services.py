"""The registry's services, put together from their stores: what a server registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from penstock.registry.v1 import accounts_pb2_grpc, models_pb2_grpc

from registry.accounts import Accounts
from registry.catalogue import Catalogue
from registry.changes import KeyChanges
from registry.ports import AccountStore, ModelStore, Objects
from registry.publishing import Publishing
from registry.servicer import AccountServicer, ModelServicer
from registry.transfers import TransferLimits, Transfers
from runtime.clock import Clock
from runtime.serving import Register


def model_service(
    store: ModelStore, objects: Objects, limits: TransferLimits, trusted_signers: Callable[[], frozenset[bytes]], clock: Clock
) -> Register:
    publishing = Publishing(store, objects, clock)
    servicer = ModelServicer(Catalogue(store, clock), publishing, Transfers(objects, limits), trusted_signers)
    return partial(models_pb2_grpc.add_ModelServiceServicer_to_server, servicer)


def account_service(store: AccountStore, changes: KeyChanges, clock: Clock) -> Register:
    servicer = AccountServicer(Accounts(store, changes, clock), changes)
    return partial(accounts_pb2_grpc.add_AccountServiceServicer_to_server, servicer)
