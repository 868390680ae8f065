"""Which RPC a path is for, and what the request becomes."""

from __future__ import annotations

import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given
from hypothesis import strategies as st
from penstock.gateway.v1 import gateway_pb2

from gateway.http.paths import Paths
from runtime.errors import InvalidArgument

OPENAI = gateway_pb2.DESCRIPTOR.services_by_name["OpenAIService"]
PATHS = Paths([OPENAI])


@pytest.mark.parametrize(
    ("verb", "path", "method", "variables"),
    [
        ("POST", "/v1/chat/completions", "CreateChatCompletion", {}),
        ("GET", "/v1/models", "ListModels", {}),
        ("GET", "/v1/models/sums", "GetModel", {"model": "sums"}),
        ("GET", "/v1/models/sums%40canary", "GetModel", {"model": "sums@canary"}),
        ("GET", "/v1/models/a%2Fb", "GetModel", {"model": "a/b"}),
        ("DELETE", "/v1/files/file-1", "DeleteFile", {"file_id": "file-1"}),
        ("GET", "/v1/files/file-1/content", "GetFileContent", {"file_id": "file-1"}),
        ("POST", "/v1/batches/b/cancel", "CancelBatch", {"batch_id": "b"}),
    ],
)
def test_a_path_finds_its_rpc(verb: str, path: str, method: str, variables: dict[str, str]) -> None:
    found = PATHS.find(verb, path)
    assert found is not None
    assert (found[0].method, found[1]) == (method, variables)


@pytest.mark.parametrize(
    ("verb", "path"),
    [("GET", "/v1/chat/completions"), ("POST", "/v1"), ("GET", "/v1/models/a/b"), ("GET", "/v1/models/"), ("PUT", "/v1/files")],
)
def test_other_paths_find_none(verb: str, path: str) -> None:
    assert PATHS.find(verb, path) is None


def test_a_body_travels_as_it_came() -> None:
    found = PATHS.find("POST", "/v1/chat/completions")
    assert found is not None
    assert found[0].message(found[1], "ignored=1", "application/json", b"{}") == HttpBody(
        content_type="application/json", data=b"{}"
    )


def test_a_query_sets_fields_and_a_variable_comes_first() -> None:
    found = PATHS.find("GET", "/v1/files")
    assert found is not None
    asked = found[0].message(found[1], "limit=7&after=file-3&order=asc&nobody=knows&purpose=", "", b"")
    assert asked == gateway_pb2.ListFilesRequest(limit=7, after="file-3", order="asc")
    found = PATHS.find("GET", "/v1/files/mine")
    assert found is not None
    assert found[0].message(found[1], "file_id=another", "", b"") == gateway_pb2.GetFileRequest(file_id="mine")


@pytest.mark.parametrize(
    "query", ["limit=many", "limit=-1", "limit=12345678901", "limit=٣", "&".join(f"a{n}=1" for n in range(65))]
)
def test_a_query_that_does_not_fit_is_refused(query: str) -> None:
    found = PATHS.find("GET", "/v1/files")
    assert found is not None
    with pytest.raises(InvalidArgument):
        found[0].message(found[1], query, "", b"")


@given(st.text(), st.text(max_size=40))
def test_whatever_comes_finds_one_or_none(path: str, query: str) -> None:
    found = PATHS.find("GET", path)
    if found is not None:
        try:
            found[0].message(found[1], query, "", b"")
        except InvalidArgument:
            return
