"""The KServe codec: every refusal by its sentence, every datatype there and back, and no bytes that get past it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb

from runtime.errors import InvalidArgument, PenstockError, Unimplemented
from tests.worker.onnx_models import spec
from worker.datatypes import DATATYPES
from worker.kserve.codec import RequestCodec, parse, streamed
from worker.tensors import object_array, to_raw
from worker.types import TensorSpec

SPEC = spec(
    inputs=(TensorSpec("x", "FP32", (2,)), TensorSpec("s", "BYTES", (-1,), optional=True)),
    outputs=(TensorSpec("y", "FP32", (3,), labels=("zero", "one")), TensorSpec("t", "BYTES", (1,))),
    max_batch_size=4,
)
X = np.array([[1.5, 2.5]], np.float32)


def request(
    *, shape: tuple[int, ...] = (1, 2), datatype: str = "FP32", name: str = "x", raw: bytes | None = X.tobytes()
) -> Any:
    message = pb.ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def changed(change: Callable[[Any], object], **arguments: Any) -> Any:
    message = request(**arguments)
    change(message)
    return message


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def with_parameter(key: str, **value: Any) -> Any:
    return changed(lambda m: m.parameters[key].CopyFrom(pb.InferParameter(**value)))


def twice(message: Any) -> None:
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(X.tobytes())


def in_shared_memory(message: Any) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (request(name="z"), "unexpected inference input 'z' for model 'm'; its inputs are ['s', 'x']"),
        (request(datatype="INT32"), "input 'x' of model 'm' has datatype 'INT32'; expected FP32"),
        (request(datatype=""), "has datatype ''; expected FP32"),
        (request(shape=(1, 3)), "has shape [1, 3]; expected [-1, 2], the first dimension being 1 to 4 rows"),
        (request(shape=(2,)), "has shape [2]; expected [-1, 2]"),
        (request(shape=()), "has shape []; expected [-1, 2]"),
        (request(shape=(0, 2), raw=b""), "has 0 rows; model 'm' takes 1 to 4"),
        (request(shape=(-1, 2)), "has -1 rows"),
        (request(shape=(5, 2), raw=bytes(40)), "has 5 rows; model 'm' takes 1 to 4"),
        (request(raw=X.tobytes()[:-1]), "has 7 bytes of data; FP32 of shape [1, 2] takes 8"),
        (request(raw=b""), "has 0 bytes of data"),
        (pb.ModelInferRequest(model_name="m"), "lacks inputs ['x']; it has []"),
        (changed(twice), "input 'x' is given twice"),
        (changed(lambda m: m.raw_input_contents.append(b"")), "has 1 inputs and 2 raw_input_contents"),
        (changed(lambda m: m.inputs[0].contents.fp32_contents.append(1)), "data in both contents and raw_input_contents"),
        (
            changed(lambda m: m.inputs[0].contents.fp64_contents.append(1), raw=None),
            "has data in fp64_contents; FP32 goes into",
        ),
        (changed(lambda m: m.inputs[0].contents.fp32_contents.append(1), raw=None), "has 1 values in fp32_contents"),
        (
            changed(lambda m: m.outputs.add(name="q")),
            "unexpected inference output 'q' for model 'm'; its outputs are ['t', 'y']",
        ),
        (changed(lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y"))), "output 'y' is requested twice"),
        (
            with_parameter("priority", string_param="1"),
            "'priority' is given as string_param; it is taken as int64_param or uint",
        ),
        (with_parameter("priority", int64_param=-1), "'priority' is -1; it cannot be negative"),
        (with_parameter("timeout", double_param=1.0), "'timeout' is given as double_param"),
        (with_parameter("sequence_start", int64_param=1), "'sequence_start' is given as int64_param"),
        (with_parameter("sequence_id", bool_param=True), "'sequence_id' is given as bool_param"),
        (with_parameter("triton_enable_empty_final_response", string_param="x"), "it is taken as bool_param"),
        (with_parameter("triton_magic", bool_param=True), "'triton_magic' is not known"),
        (with_parameter("mine"), "parameter 'mine' has no value"),
    ],
)
def test_refusals_name_what_was_seen(message: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        RequestCodec(SPEC).decode(message)
    assert sentence in refused.value.message


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (packed(b"a"), "too few for 2 BYTES elements"),
        (packed(b"abcdefgh"), "has 1 BYTES elements; its shape takes 2"),
        (packed(b"a", b"b", b"c"), "after its 2 BYTES elements"),
        (packed(b"a", b"b")[:-1], "claims 1 bytes; 0 are left"),
        (packed(b"abcdef") + b"\x01", "ends within the length of BYTES element 1"),
        (struct.pack("<II", 0xFFFFFFFF, 0), "claims 4294967295 bytes; 4 are left"),
    ],
)
def test_bytes_elements_are_counted(raw: bytes, sentence: str) -> None:
    def add(message: Any) -> None:
        message.inputs.add(name="s", datatype="BYTES", shape=(1, 2))
        message.raw_input_contents.append(raw)

    with pytest.raises(InvalidArgument) as refused:
        RequestCodec(SPEC).decode(changed(add))
    assert sentence in refused.value.message


def test_inputs_share_their_rows() -> None:
    def add(message: Any) -> None:
        message.inputs.add(name="s", datatype="BYTES", shape=(2, 1))
        message.raw_input_contents.append(packed(b"a", b"b"))

    with pytest.raises(InvalidArgument, match="'s' has 2 rows where another input has 1"):
        RequestCodec(SPEC).decode(changed(add))


def test_shared_memory_is_refused_where_there_is_none() -> None:
    with pytest.raises(Unimplemented, match="shared memory, which this server does not open here"):
        RequestCodec(SPEC).decode(changed(in_shared_memory))

    def output_in_it(message: Any) -> None:
        message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"

    with pytest.raises(Unimplemented, match="output 'y' is in shared memory"):
        RequestCodec(SPEC).decode(changed(output_in_it))


def test_strings_that_are_not_utf8_are_refused_where_the_engine_wants_them() -> None:
    def add(message: Any) -> None:
        message.inputs.add(name="s", datatype="BYTES", shape=(1, 2))
        message.raw_input_contents.append(packed(b"fine", b"\xff"))

    assert RequestCodec(SPEC).decode(changed(add)).inputs["s"].tolist() == [[b"fine", b"\xff"]]
    with pytest.raises(InvalidArgument, match="element 1 of input 's' is not UTF-8"):
        RequestCodec(SPEC, utf8_bytes=True).decode(changed(add))


def test_parameters_that_clients_send() -> None:
    message = request()
    message.parameters["priority"].uint64_param = 3
    message.parameters["timeout"].int64_param = 1500
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["sequence_id"].string_param = "s"
    message.parameters["mine"].double_param = 2.5
    parameters = RequestCodec(SPEC).decode(message).parameters
    assert (parameters.priority, parameters.timeout_s, parameters.empty_final) == (3, 0.0015, True)
    assert parameters.custom == {"mine": 2.5}


def test_an_array_is_a_view_of_the_request() -> None:
    array = RequestCodec(SPEC).decode(request()).inputs["x"]
    assert array.tolist() == X.tolist()
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_a_known_layout_is_still_checked_for_size() -> None:
    codec = RequestCodec(SPEC)
    for _ in range(2):
        assert codec.decode(request()).rows == 1
        with pytest.raises(InvalidArgument, match="takes 8"):
            codec.decode(request(raw=b"123"))
        with pytest.raises(InvalidArgument, match="1 inputs and 2 raw_input_contents"):
            codec.decode(changed(lambda m: m.raw_input_contents.append(b"")))


VALUES: dict[str, Any] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [1.5, -2.0],
    "FP32": [1.5, -2.0],
    "FP64": [1e300, -2.0],
    "BYTES": [b"", b"\xff\x00ab"],
    "BF16": [0x3FC0, 0xC000],
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_there_and_back(datatype: str) -> None:
    made = spec(inputs=(TensorSpec("x", datatype, (2,)),), outputs=(TensorSpec("y", datatype, (2,)),))
    codec = RequestCodec(made)
    kind = DATATYPES[datatype]
    values = VALUES[datatype]
    array = object_array(values).reshape(1, 2) if datatype == "BYTES" else np.array([values], kind.dtype)
    decoded = codec.decode(request(datatype=datatype, raw=to_raw(array)))
    assert decoded.inputs["x"].tolist() == array.tolist()
    response = codec.response("7", decoded.outputs, [decoded.inputs["x"]])
    assert (response.id, response.model_name, response.model_version) == ("7", "m", "1")
    assert response.outputs[0].datatype == datatype
    assert list(response.outputs[0].shape) == [1, 2]
    assert response.raw_output_contents[0] == to_raw(array)
    typed = request(datatype=datatype, raw=None)
    if not kind.contents:
        with pytest.raises(InvalidArgument, match="raw_input_contents only"):
            codec.decode(typed)
        return
    getattr(typed.inputs[0].contents, kind.contents).extend(values)
    assert codec.decode(typed).inputs["x"].tolist() == array.tolist()


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("UINT8", 256), ("INT16", -40000), ("UINT16", 65536)])
def test_typed_values_beyond_the_datatype_are_refused(datatype: str, value: int) -> None:
    made = spec(inputs=(TensorSpec("x", datatype, (1,)),))
    message = request(datatype=datatype, shape=(1, 1), raw=None)
    getattr(message.inputs[0].contents, DATATYPES[datatype].contents).append(value)
    with pytest.raises(InvalidArgument, match=f"a value that {datatype} cannot hold"):
        RequestCodec(made).decode(message)


def test_any_nonzero_byte_is_true() -> None:
    made = spec(inputs=(TensorSpec("x", "BOOL", (2,)),))
    assert RequestCodec(made).decode(request(datatype="BOOL", raw=b"\x00\x07")).inputs["x"].tolist() == [[False, True]]


def test_a_subset_of_outputs_in_the_order_asked_for() -> None:
    decoded = RequestCodec(SPEC).decode(changed(lambda m: m.outputs.add(name="t")))
    arrays = [np.zeros((1, 3), np.float32), object_array([b"hi"]).reshape(1, 1)]
    response = RequestCodec(SPEC).response("", decoded.outputs, arrays)
    assert [output.name for output in response.outputs] == ["t"]
    assert list(response.raw_output_contents) == [packed(b"hi")]


def test_classification() -> None:
    def ask(message: Any) -> None:
        message.outputs.add(name="y").parameters["classification"].int64_param = 2

    codec = RequestCodec(SPEC)
    decoded = codec.decode(changed(ask))
    arrays = [np.array([[0.25, 3, 3], [9, 8, 7]], np.float32), None]
    response = codec.response("", decoded.outputs, arrays)  # type: ignore[arg-type]
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    assert response.raw_output_contents[0] == packed(b"3.000000:1:one", b"3.000000:2", b"9.000000:0:zero", b"8.000000:1:one")


def test_classification_is_of_numbers_and_takes_a_count() -> None:
    def ask(name: str, **value: Any) -> Any:
        return changed(lambda m: m.outputs.add(name=name).parameters["classification"].CopyFrom(pb.InferParameter(**value)))

    codec = RequestCodec(SPEC)
    with pytest.raises(InvalidArgument, match="BYTES, which has no classes"):
        codec.decode(ask("t", int64_param=1))
    with pytest.raises(InvalidArgument, match="'classification' is given as string_param"):
        codec.decode(ask("y", string_param="1"))
    with pytest.raises(InvalidArgument, match="'classification' is given as nothing"):
        codec.decode(ask("y"))
    assert codec.decode(ask("y", uint64_param=2)).outputs[0].classes == 2


def test_classification_of_bfloat16_orders_by_value() -> None:
    made = spec(outputs=(TensorSpec("y", "BF16", (2,)),))
    codec = RequestCodec(made)
    decoded = codec.decode(
        changed(lambda m: m.outputs.add(name="y").parameters["classification"].CopyFrom(pb.InferParameter(int64_param=9)))
    )
    response = codec.response("", decoded.outputs, [np.array([[0xC000, 0x3FC0]], np.uint16)])
    assert response.raw_output_contents[0] == packed(b"1.500000:1", b"-2.000000:0")


def test_a_model_without_a_batch_dimension() -> None:
    made = spec(inputs=(TensorSpec("x", "FP32", (-1, 2)),), max_batch_size=0)
    codec = RequestCodec(made)
    assert codec.decode(request(shape=(1, 2))).rows == 1
    assert codec.decode(request(shape=(0, 2), raw=b"")).inputs["x"].shape == (0, 2)
    with pytest.raises(InvalidArgument, match=r"has shape \[1, 1, 2\]; expected \[-1, 2\]"):
        codec.decode(request(shape=(1, 1, 2)))


def test_an_absurd_shape_costs_nothing() -> None:
    made = spec(inputs=(TensorSpec("x", "BYTES", (-1, -1)),), max_batch_size=0)
    for shape in ((2**39, 2**39), (0, 2**39), (2**62, 1)):
        with pytest.raises(InvalidArgument):
            RequestCodec(made).decode(request(shape=(*shape,), datatype="BYTES", raw=b"\0" * 8))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_understood(payload: bytes) -> None:
    try:
        RequestCodec(SPEC, utf8_bytes=True).decode(parse(payload))
    except PenstockError as error:
        assert error.message


PARAMETERS = st.dictionaries(
    st.sampled_from(("priority", "timeout", "sequence_id", "triton_x", "mine", "shared_memory_region", "classification")),
    st.one_of(
        st.just(pb.InferParameter()),
        st.integers(-(2**63), 2**63 - 1).map(lambda n: pb.InferParameter(int64_param=n)),
        st.integers(0, 2**64 - 1).map(lambda n: pb.InferParameter(uint64_param=n)),
        st.booleans().map(lambda b: pb.InferParameter(bool_param=b)),
        st.text(max_size=3).map(lambda t: pb.InferParameter(string_param=t)),
    ),
    max_size=2,
)
CONTENTS = st.builds(
    pb.InferTensorContents,
    fp32_contents=st.lists(st.just(1.0), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=2),
    int64_contents=st.lists(st.just(1), max_size=1),
)
TENSORS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(("x", "s", "", "q")),
    datatype=st.sampled_from(("FP32", "BYTES", "BF16", "?")),
    shape=st.lists(st.sampled_from((-1, 0, 1, 2, 4, 5, 2**40, 2**63 - 1)), max_size=3),
    parameters=PARAMETERS,
    contents=st.none() | CONTENTS,
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    parameters=PARAMETERS,
    inputs=st.lists(TENSORS, max_size=3),
    outputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(("y", "t", "q")), parameters=PARAMETERS
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(st.binary(max_size=20), max_size=3),
)


@settings(max_examples=600, deadline=None)
@given(REQUESTS)
def test_any_request_is_refused_with_a_sentence_or_fits_the_model(message: Any) -> None:
    try:
        decoded = RequestCodec(SPEC, utf8_bytes=True).decode(message)
    except PenstockError as error:
        assert error.message
        return
    assert 1 <= decoded.rows <= SPEC.max_batch_size
    assert decoded.inputs["x"].shape == (decoded.rows, 2)
    assert all(len(array) == decoded.rows for array in decoded.inputs.values())


@given(content=st.binary(max_size=40_000), request_id=st.text(max_size=20))
def test_a_streamed_response_is_the_message_that_holds_it(content: bytes, request_id: str) -> None:
    response = pb.ModelInferResponse(model_name="m", id=request_id, raw_output_contents=[content])
    assert streamed(response) == pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


def test_a_layout_of_one_input_is_not_taken_for_that_of_two() -> None:
    """An input without any field is no byte more on the wire."""
    codec = RequestCodec(SPEC)
    codec.decode(request())
    with pytest.raises(InvalidArgument, match="unexpected inference input ''"):
        codec.decode(changed(lambda message: message.inputs.add()))
