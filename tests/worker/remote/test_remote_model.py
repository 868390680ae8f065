"""Copies of upstream models: opened like any other, asked like any other, counted like any other."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from inference import grpc_service_pb2 as pb

from runtime.errors import InvalidArgument, UpstreamBusy, UpstreamUnavailable
from runtime.ids import ModelName, ModelVersion
from tests.support.upstream_server import openai_answer, running_upstream, vector_of
from tests.support.waiting import eventually
from tests.worker.upstreams import chat, chat_spec, embedding_spec, text_of, write
from worker.batching.batcher import ModelLeaving
from worker.copies import open_model
from worker.engine import EngineFailed, Finish, ModelRefused, Piece
from worker.engines.upstream.errors import UpstreamClosed
from worker.models import ModelTable
from worker.remote.remote_model import RemoteEmbeddingModel, RemoteTextModel
from worker.remote.upstream_keys import UpstreamAccess
from worker.statistics import Failure
from worker.tensors import object_array, to_raw
from worker.types import CallContext, Kind, ModelSpec, Task

CALL = CallContext()


async def text_model(folder: Path, url: str, **fields: Any) -> RemoteTextModel:
    model = await open_model(chat_spec(), write(folder, url, **fields))
    assert isinstance(model, RemoteTextModel)
    return model


async def said(model: RemoteTextModel, text: str, call: CallContext = CALL) -> list[Piece]:
    return [piece async for piece in model.generate(chat(text), call)]


def texts_request(*texts: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="vectors", id="r-1")
    request.inputs.add(name="text_input", datatype="BYTES", shape=(len(texts), 1))
    request.raw_input_contents.append(to_raw(object_array([text.encode() for text in texts])))
    return request


async def test_a_generation_is_counted_like_any_other(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        model = await text_model(tmp_path, upstream.url)
        assert model.kind is Kind.TEXT
        assert text_of(await said(model, "one two three")) == "one two three"
        statistics = model.statistics
        assert (statistics.success.count, statistics.inference_count, statistics.execution_count) == (1, 1, 1)
        assert (statistics.prompt_tokens, statistics.completion_tokens, statistics.first_response.count) == (3, 3, 1)
        with pytest.raises(UpstreamBusy):
            await said(model, "refuse")
        with pytest.raises(UpstreamUnavailable):
            await said(model, "break")
        async with aclosing(model.generate(chat("hang"), CALL)) as pieces:
            await anext(pieces)
        await eventually(upstream.gone.is_set)
        assert statistics.failures == {**dict.fromkeys(Failure, 0), Failure.BACKEND: 2, Failure.CANCELED: 1}
        assert not model.busy
        model.close()


async def test_no_more_calls_at_once_than_allowed(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        model = await text_model(tmp_path, upstream.url, max_concurrency=2)
        answers = await asyncio.gather(*(said(model, f"number {number}") for number in range(12)))
        assert [text_of(answer) for answer in answers] == [f"number {number}" for number in range(12)]
        assert upstream.most_under_way <= 2
        assert upstream.connections <= 2
        assert model.statistics.success.count == 12
        model.close()


async def test_a_reader_that_stops_at_the_last_piece_has_its_answer(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        model = await text_model(tmp_path, upstream.url)
        async with aclosing(model.generate(chat("a"), CALL)) as pieces:
            async for piece in pieces:
                if piece.finish is Finish.STOP:
                    break
        assert (model.statistics.success.count, model.statistics.fail.count) == (1, 0)
        assert not upstream.gone.is_set()
        model.close()


async def test_unloading_lets_go_of_the_upstream(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        table = ModelTable()
        table.add(model := await text_model(tmp_path, upstream.url, max_concurrency=1))
        running = asyncio.ensure_future(said(model, "hang"))
        await eventually(lambda: upstream.under_way == 1)
        waiting = asyncio.ensure_future(said(model, "later"))
        await asyncio.sleep(0)
        await table.remove(ModelName("echo"), ModelVersion("1"), grace_s=0.01)
        with pytest.raises(UpstreamClosed, match="was unloaded while"):
            await running
        with pytest.raises(ModelLeaving):
            await waiting
        await eventually(upstream.gone.is_set)
        with pytest.raises(ModelLeaving):
            await said(model, "a")


async def test_embeddings_as_tensors(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        model = await open_model(embedding_spec(), write(tmp_path, upstream.url))
        assert isinstance(model, RemoteEmbeddingModel)
        assert model.kind is Kind.TENSORS
        texts = ("a", "wörld", "the third")
        response = await model.infer(texts_request(*texts), CALL)
        found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)
        np.testing.assert_array_equal(found, np.array([vector_of(text) for text in texts], np.float32))
        assert (response.id, response.outputs[0].name, len(upstream.asked)) == ("r-1", "vector", 1)
        assert (model.statistics.inference_count, model.statistics.execution_count) == (3, 1)
        with pytest.raises(InvalidArgument):
            await model.infer(pb.ModelInferRequest(model_name="vectors"), CALL)
        assert model.statistics.failures[Failure.OTHER] == 1
        model.close()


async def test_embeddings_of_another_width_than_described(tmp_path: Path) -> None:
    async with running_upstream(openai_answer) as upstream:
        model = await open_model(embedding_spec(width=5), write(tmp_path, upstream.url))
        assert isinstance(model, RemoteEmbeddingModel)
        with pytest.raises(EngineFailed, match="embeddings of 3 numbers; the manifest of 'vectors' says 5"):
            await model.infer(texts_request("a"), CALL)
        assert model.statistics.failures[Failure.BACKEND] == 1
        model.close()


async def test_an_upstream_that_is_away_is_no_reason_not_to_load(tmp_path: Path) -> None:
    model = await text_model(tmp_path / "a", "http://127.0.0.1:9")
    with pytest.raises(UpstreamUnavailable):
        await said(model, "a")
    model.close()
    with pytest.raises(UpstreamUnavailable):
        await text_model(tmp_path / "b", "http://127.0.0.1:9", check=True)


@pytest.mark.parametrize("described", [embedding_spec(max_batch_size=0), chat_spec(Task.EMBEDDING)])
async def test_manifests_that_describe_no_embedding(tmp_path: Path, described: ModelSpec) -> None:
    with pytest.raises(ModelRefused, match="embeds texts; its manifest needs one"):
        await open_model(described, write(tmp_path, "http://127.0.0.1:9"))


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "upstream.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with running_upstream(openai_answer, tls) as upstream:
        stranger = await text_model(tmp_path / "a", upstream.url)
        with pytest.raises(UpstreamUnavailable, match="shows no certificate that is trusted here"):
            await said(stranger, "a")
        stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        friend = await text_model(tmp_path / "b", upstream.url)
        assert text_of(await said(friend, "over TLS")) == "over TLS"
        friend.close()
        elsewhere = await open_model(chat_spec(), write(tmp_path / "c", f"https://localhost:{upstream.port}"), UpstreamAccess())
        assert isinstance(elsewhere, RemoteTextModel)
        with pytest.raises(UpstreamUnavailable, match="no certificate that is trusted"):
            await said(elsewhere, "a")  # the certificate is the address's, not this name's
        elsewhere.close()
