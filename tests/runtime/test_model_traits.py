"""What a model says of itself: in model.toml, in Triton's configuration, and in a configuration laid over either."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2

from runtime.description_table import ModelFolderRefused
from runtime.model_description import trait_faults
from runtime.model_folder import read_model_folder
from runtime.model_overlay import overlaid
from runtime.triton_config import carry, parse_text
from tests.runtime.triton_texts import PLAIN, SEQUENCES

TOP = 'name = "m"\nengine = "llm"\ntask = "chat"\n'
TENSORS = '[[outputs]]\nname = "y"\ndatatype = "BYTES"\nshape = [1]\n'
CACHE = "response_cache { enable: true }\n"


def described(folder: Path, lines: str, rest: str = "") -> models_pb2.Manifest:
    (folder / "model.toml").write_text(TOP + lines + TENSORS + rest)
    (folder / "model.onnx").write_bytes(b"weights")
    return read_model_folder(folder).manifest


def test_all_of_it_arrives(tmp_path: Path) -> None:
    manifest = described(
        tmp_path,
        "response_cache = true\ncontext_tokens = 8192\ncost_per_million_tokens = 2\n"
        'capabilities = ["resume", "tools", "json", "tools"]\n',
    )
    assert manifest.response_cache
    assert (manifest.context_tokens, manifest.cost_per_million_tokens) == (8192, 2.0)
    assert list(manifest.capabilities) == ["tools", "json", "resume"]
    assert trait_faults(manifest) == []


def test_what_is_not_said_is_left_to_the_engine(tmp_path: Path) -> None:
    manifest = described(tmp_path, "")
    assert (manifest.response_cache, manifest.context_tokens, manifest.cost_per_million_tokens) == (False, 0, 0.0)
    assert list(manifest.capabilities) == []


@pytest.mark.parametrize(
    ("lines", "rest", "sentence"),
    [
        ('capabilities = ["tool"]\n', "", "capabilities names 'tool'; they are: tools, json, json_schema, logprobs"),
        ("capabilities = [7]\n", "", "capabilities is"),
        ("context_tokens = -1\n", "", "context_tokens is -1; a whole number from 0"),
        ("cost_per_million_tokens = -0.5\n", "", "cost_per_million_tokens is -0.5; a number from 0"),
        ("cost_per_million_tokens = nan\n", "", "cost_per_million_tokens is nan"),
        ("cost_per_million_tokens = inf\n", "", "cost_per_million_tokens is inf"),
        ("cost_per_million_tokens = true\n", "", "cost_per_million_tokens is True"),
        ('response_cache = "yes"\n', "", "response_cache is 'yes'; it is true or false"),
        ("response_cache = true\nconfidential = true\n", "", "confidential model"),
        ("response_cache = true\n", "[sequence_batching]\n", "model with sequences"),
    ],
)
def test_refusals(tmp_path: Path, lines: str, rest: str, sentence: str) -> None:
    with pytest.raises(ModelFolderRefused, match=r"model\.toml") as caught:
        described(tmp_path, lines, rest)
    assert sentence in caught.value.message


def test_several_responses_are_not_kept_but_a_text_is(tmp_path: Path) -> None:
    assert described(tmp_path, "response_cache = true\ndecoupled = true\n").response_cache
    (tmp_path / "model.toml").write_text(
        'name = "m"\nengine = "python"\nresponse_cache = true\ndecoupled = true\n' + TENSORS.replace("BYTES", "FP32")
    )
    with pytest.raises(ModelFolderRefused, match="decoupled model"):
        read_model_folder(tmp_path)


def test_faults_of_a_manifest_from_elsewhere_are_named_at_once() -> None:
    manifest = models_pb2.Manifest(
        response_cache=True, confidential=True, capabilities=["flight"], cost_per_million_tokens=float("nan")
    )
    faults = trait_faults(manifest)
    assert [fault.split()[0] for fault in faults] == ["capability", "response_cache:", "cost_per_million_tokens"]


def carried(text: str) -> tuple[models_pb2.Manifest, tuple[str, ...]]:
    found = carry("config.pbtxt", parse_text("config.pbtxt", text), "m", {"model.onnx"}, lambda _: ())
    return found.manifest, found.warnings


def test_tritons_response_cache_is_carried() -> None:
    manifest, warnings = carried(PLAIN + CACHE)
    assert (manifest.response_cache, warnings) == (True, ())
    assert not carried(PLAIN)[0].response_cache
    assert not carried(PLAIN + "response_cache { enable: false }")[0].response_cache


@pytest.mark.parametrize("text", [SEQUENCES, PLAIN + "model_transaction_policy { decoupled: true }\n"])
def test_tritons_response_cache_is_left_out_where_answers_are_not_for_it(text: str) -> None:
    manifest, warnings = carried(text + CACHE)
    assert not manifest.response_cache
    assert any(warning.startswith("response_cache is left out: it is not for a") for warning in warnings)


@pytest.mark.parametrize(
    ("base", "configured", "cached"),
    [(True, "", True), (True, "response_cache { enable: false }", False), (False, CACHE, True), (False, "", False)],
)
def test_a_configuration_laid_over_a_model_says_what_it_says(base: bool, configured: str, cached: bool) -> None:
    model, _ = carried(PLAIN.replace('label_filename: "labels.txt"', ""))
    model.response_cache, model.context_tokens, model.cost_per_million_tokens = base, 512, 3.5
    model.capabilities.append("logprobs")
    over = overlaid("the load's config", model, {"model.onnx"}, parse_text("c", 'backend: "onnxruntime"\n' + configured))
    assert over.response_cache is cached
    assert (over.context_tokens, over.cost_per_million_tokens, list(over.capabilities)) == (512, 3.5, ["logprobs"])


def test_a_configuration_that_makes_answers_unfit_takes_the_cache_away() -> None:
    model, _ = carried(PLAIN.replace('label_filename: "labels.txt"', ""))
    model.response_cache = True
    text = 'backend: "onnxruntime"\nmodel_transaction_policy { decoupled: true }'
    assert not overlaid("the load's config", model, {"model.onnx"}, parse_text("c", text)).response_cache
