"""Whether a torch.export archive is data: what is in it that loading would execute.

Loading a .pt2 unpickles what is marked as a pickle (weights, custom and opaque objects; example inputs without `weights_only`
where that fails), loads compiled libraries, evaluates size expressions (sympy's parser) and guards as Python, resolves
operators by attributes and writes its names into generated source. An archive that holds more than tensors, operators of
torch's own and plain names and expressions is refused here, before torch reads it. This keeps a model from being code by
accident or by a careless exporter; it is no proof against one made to deceive, which the signature is for.

Source: torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py of torch 2.13.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MAX_DESCRIPTION_BYTES: Final = 256 * 1024**2
_RECORDS = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|extra/[\w./-]+"
)
_NAME = re.compile(r"[A-Za-z0-9_.+-]{0,512}")
_WORD = re.compile(r"[A-Za-z0-9_]{0,64}")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed)\.[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(sym_[a-z_]+|_check|_constrain_as_size)|torch\._sym_[a-z]+|_operator\.[a-z_]+|math\.[a-z0-9]+"
)
_FILE_OPERATORS = ("from_file", "save", "load", "_save", "_load")
_EXPRESSION_NAMES = re.compile(
    r"L|Symbol|Integer|Float|Rational|Boolean(True|False)|true|false|int_oo|Identity|Where|Add|Mul|Pow|Max|Min|Abs|Mod"
    r"|(Python|Float|IntTrue|FloatTrue|Floor|Clean|Ceil)(Mod|Pow|Div)|PowByNatural|ModularIndexing|[LR]Shift|floor|ceiling|sqrt"
    r"|(Ceil|Floor|Round|Trunc)?To(Int|Float)|RoundDecimal|TruncToFloat|(OpaqueUnary|Bitwise)Fn_[a-z0-9_]+"
    r"|Eq|Ne|And|Or|Not|Equality|Unequality|(Strict)?(Less|Greater)Than"
)
_EXPRESSION_CALLS = frozenset(("size", "stride", "storage_offset", "dim"))
_EXPRESSION_NODES = (
    ast.Expression,
    ast.Name,
    ast.Constant,
    ast.Attribute,
    ast.Subscript,
    ast.Call,
    ast.keyword,
    ast.Compare,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Load,
)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class NotData(Exception):
    """What in the archive is more than data, in one line."""


def check_archive(file: Path, torch: Any) -> None:
    """Raises NotData; OSError, ValueError or RuntimeError where it is no archive of torch.export at all."""
    with zipfile.ZipFile(file) as archive:
        records = _records(archive)
        for name in records:
            if not _RECORDS.fullmatch(name):
                raise NotData(f"it holds {name[:80]!r}, which is no tensor and no description of a program")
        for part in ("weights", "constants"):
            _check_payloads(_described(archive, records, f"data/{part}/model_{part}_config.json"))
        _check_program(_described(archive, records, "models/model.json"))
        if "data/sample_inputs/model.pt" in records:
            _check_example(archive.read(records["data/sample_inputs/model.pt"]), torch)


def _records(archive: zipfile.ZipFile) -> dict[str, str]:
    """Names in the archive by the name of the record: all stand in one folder, as torch wants them."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    folders = {name.partition("/")[0] for name in names}
    records = {name.partition("/")[2]: name for name in names}
    if len(folders) != 1 or len({name.casefold() for name in records}) != len(names):
        # Archives of torch before 2.8 have no folder, and pickles.
        raise NotData("its records do not stand in one folder, each once; save it with torch.export.save of torch 2.8 or newer")
    return records


def _described(archive: zipfile.ZipFile, records: dict[str, str], name: str) -> Any:
    if name not in records:
        raise NotData(f"it has no record {name!r}; save it with torch.export.save of torch 2.8 or newer")
    if (size_bytes := archive.getinfo(records[name]).file_size) > MAX_DESCRIPTION_BYTES:
        raise NotData(f"its record {name!r} has {size_bytes} bytes; up to {MAX_DESCRIPTION_BYTES} are read")
    try:
        return json.loads(archive.read(records[name]))
    except RecursionError as error:
        raise NotData(f"its record {name!r} is nested too deeply") from error


def _check_payloads(config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"]:
            raise NotData(f"tensor {name[:80]!r} is a pickle; export plain, dense tensors")


def _check_example(content: bytes, torch: Any) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise NotData("its example inputs are a pickle of more than tensors; export with plain tensors") from error


def _check_program(program: Any) -> None:
    for key, text in _texts(program):
        if key == "expr_str" or key == "guards_code":
            _check_expression(text)
        elif key in ("in_spec", "out_spec"):
            _check_container(json.loads(text)[1])
        elif key in ("target", "as_operator"):
            _check_operator(text)
        elif not (_WORD if key in ("as_string", "as_strings") else _NAME).fullmatch(text):
            raise NotData(f"it has a {key or 'name'} {text[:80]!r}, which is no plain name")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of the description with the key it stands under; dictionaries' own keys stand under none."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    elif isinstance(value, dict):
        if (value and key == "custom_obj_values") or "as_custom_obj" in value:
            raise NotData("it holds an object of a class of its own")
        for name, each in value.items():
            yield "", name
            if name != "metadata":  # where it came from: traces and module names, which nothing executes
                yield from _texts(each, name)


def _check_operator(text: str) -> None:
    if not _OPERATOR.fullmatch(text) or any(part in _FILE_OPERATORS for part in text.split(".")):
        raise NotData(f"it uses {text[:80]!r}, which is no operator that torch's exporter needs")


def _check_expression(text: str) -> None:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotData(f"it has an expression that cannot be read: {text[:80]!r}") from error
    for node in nodes:
        fine = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Name):
            fine = bool(_EXPRESSION_NAMES.fullmatch(node.id))
        elif isinstance(node, ast.Attribute):
            fine = node.attr in _EXPRESSION_CALLS
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = bool(_NAME.fullmatch(node.value))
        if not fine:
            raise NotData(f"it has an expression that is more than arithmetic: {text[:80]!r}")


def _check_container(tree: Any) -> None:
    context = tree["context"]
    if tree["type"] not in _CONTAINERS or (context and not _plain_keys(json.loads(context))):
        raise NotData(f"it takes or gives a {str(tree['type'])[:80]!r}; tuples, lists and dictionaries of tensors are taken")
    for child in tree["children_spec"]:
        _check_container(child)


def _plain_keys(keys: Any) -> bool:
    return keys is None or (isinstance(keys, list) and all(isinstance(key, str) and _NAME.fullmatch(key) for key in keys))
