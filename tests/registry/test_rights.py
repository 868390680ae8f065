"""Who may call what: one table for every RPC and every caller there is; and what no tenant learns of another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from registry.services import SERVICES
from runtime.certificates import server_name
from runtime.identity import NodeIdentity, Role
from tests.registry.callers import COLUMNS, REQUESTS, Callers, callers_of
from tests.registry.front import METHODS, Answer, front_on

# Y  may: answered, or refused for what is asked and not for who asks        -  PERMISSION_DENIED
# 0  NOT_FOUND: what acme has is not there for this caller                    ?  UNAUTHENTICATED
RIGHTS = """
                               op gw sc wk rg   ow pb ca au   fw   gl   en no rv
ModelService/CreateModel        Y  Y  -  -  -    Y  Y  -  -    -    -    ?  ?  -
ModelService/ListModels         Y  Y  Y  Y  -    Y  Y  Y  Y    Y    Y    ?  ?  -
ModelService/ShareModel         Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/PublishVersion     Y  Y  -  -  -    Y  Y  -  -    -    -    ?  ?  -
ModelService/GetVersion         Y  Y  Y  Y  -    Y  Y  Y  Y    Y    0    ?  ?  -
ModelService/WithdrawVersion    Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/MoveAlias          Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/PromoteAlias       Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/RollBackAlias      Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/RemoveAlias        Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
ModelService/ListAliasMoves     Y  Y  Y  Y  -    Y  Y  Y  Y    Y    0    ?  ?  -
ModelService/SettleAlias        Y  -  Y  -  -    -  -  -  -    -    -    ?  ?  -
ModelService/EndorseSigner      Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
ModelService/ListSigners        Y  Y  Y  Y  -    Y  Y  Y  Y    Y    -    ?  ?  -
ModelService/RevokeSigner       Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
FileService/BeginUpload         Y  Y  -  -  -    Y  Y  -  -    -    -    ?  ?  -
FileService/UploadPart          Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
FileService/CompleteUpload      Y  Y  -  -  -    Y  Y  -  -    -    0    ?  ?  -
FileService/AbortUpload         Y  Y  -  -  -    Y  Y  -  -    -    Y    ?  ?  -
FileService/FetchFile           Y  -  -  Y  -    -  -  -  -    -    -    ?  ?  -
FileService/CollectGarbage      Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
FileService/GetStorage          Y  -  -  -  -    Y  Y  Y  Y    Y    -    ?  ?  -
FileService/SetQuota            Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
FileService/RotateMasterKey     Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
AccountService/CreateTenant     Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
AccountService/ListTenants      Y  -  -  -  -    Y  -  -  Y    -    Y    ?  ?  -
AccountService/CreateUser       Y  -  -  -  -    Y  -  -  -    -    -    ?  ?  -
AccountService/ListUsers        Y  -  -  -  -    Y  -  -  Y    -    -    ?  ?  -
AccountService/UpdateUser       Y  -  -  -  -    Y  -  -  -    -    0    ?  ?  -
AccountService/LogIn            Y  Y  Y  Y  Y    Y  Y  Y  Y    Y    Y    Y  Y  -
AccountService/LogOut           Y  Y  Y  Y  Y    Y  Y  Y  Y    Y    Y    ?  ?  -
AccountService/WhoAmI           Y  Y  Y  Y  Y    Y  Y  Y  Y    Y    Y    ?  ?  -
AccountService/CreateKey        Y  -  -  -  -    Y  -  -  -    -    -    ?  ?  -
AccountService/ListKeys         Y  -  -  -  -    Y  -  -  Y    -    -    ?  ?  -
AccountService/RotateKey        Y  -  -  -  -    Y  -  -  -    -    0    ?  ?  -
AccountService/RevokeKey        Y  -  -  -  -    Y  -  -  -    -    0    ?  ?  -
AccountService/ResolveKey       Y  Y  -  -  -    -  -  -  -    -    -    ?  ?  -
LimitService/SetLimit           Y  -  -  -  -    Y  -  -  -    -    -    ?  ?  -
LimitService/ListLimits         Y  -  -  -  -    Y  -  -  Y    -    -    ?  ?  -
LimitService/DeleteLimit        Y  -  -  -  -    Y  -  -  -    -    0    ?  ?  -
NodeService/CreateJoinToken     Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
NodeService/ListJoinTokens      Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
NodeService/RevokeJoinToken     Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
NodeService/Enrol               Y  Y  Y  Y  Y    Y  Y  Y  Y    Y    Y    Y  Y  -
NodeService/RenewCertificate    Y  Y  Y  Y  Y    -  -  -  -    -    -    Y  ?  -
NodeService/ListNodes           Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
NodeService/RevokeNode          Y  -  -  -  -    -  -  -  -    -    -    ?  ?  -
AuditService/ListEntries        Y  -  -  -  -    Y  -  -  Y    -    -    ?  ?  -
AuditService/ReportIncident     Y  Y  Y  Y  -    -  -  -  -    -    -    ?  ?  -
"""
_HEAD, *_ROWS = RIGHTS.strip().splitlines()
TABLE = {row.split()[0]: dict(zip(_HEAD.split(), row.split()[1:], strict=True)) for row in _ROWS}
_LETTERS = {
    grpc.StatusCode.PERMISSION_DENIED: "-",
    grpc.StatusCode.UNAUTHENTICATED: "?",
    grpc.StatusCode.NOT_FOUND: "0",
}
_BUGS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(tmp_path_factory: pytest.TempPathFactory, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Callers]:
    folder = tmp_path_factory.mktemp("rights")
    async with front_on(str(folder / "registry.db"), folder, identities) as front:
        yield await callers_of(front, folder)


def letter_of(answer: Answer) -> str:
    assert answer.code not in _BUGS, answer
    return _LETTERS.get(answer.code, "Y")


def test_every_rpc_has_a_row_and_a_request() -> None:
    assert list(TABLE) == list(REQUESTS)
    assert TABLE.keys() == METHODS.keys()
    assert {method.containing_service.full_name for method in METHODS.values()} == set(SERVICES)
    assert all(row.keys() == COLUMNS.keys() for row in TABLE.values())


@on_the_modules_loop
@pytest.mark.parametrize("method", TABLE)
async def test_who_may(callers: Callers, method: str) -> None:
    wrong = {}
    for column in COLUMNS:
        for number, way in enumerate(callers.ways_for(column, method)):
            answer = await callers.ask(way, method)
            if letter_of(answer) != TABLE[method][column]:
                wrong[f"{COLUMNS[column]}, way {number}"] = answer
    if method == "AccountService/LogOut":
        await callers.log_in()
    assert wrong == {}


@on_the_modules_loop
async def test_the_port_of_nodes_opens_to_no_one_else(callers: Callers) -> None:
    """Not even to be told so: without a certificate of this mesh there is no connection."""
    front = callers.front
    address = f"127.0.0.1:{front.ports[0]}"
    credentials = grpc.ssl_channel_credentials(front.authority.certificate_pem)
    options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY))]
    for channel in (grpc.aio.secure_channel(address, credentials, options=options), grpc.aio.insecure_channel(address)):
        async with channel:
            login: Any = channel.unary_unary("/penstock.registry.v1.AccountService/LogIn")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await login(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
