"""The infer requests over HTTP: good ones first, then every way of getting it wrong that we know of."""

from __future__ import annotations

import gzip
import json
import struct
import zlib

from .cases import HttpCase

HEADER_LENGTH = "Inference-Header-Content-Length"
TWO = {"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": [1.5, -2.25]}
ROWS = {"name": "INPUT0", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
FLOATS = struct.pack("<2f", 1.5, -2.25)


def _infer(name, doc, raw=b"", model="identity", headers=(), path=None, length=None) -> HttpCase:
    head = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
    if raw or length is not None:
        headers = (*headers, (HEADER_LENGTH, str(len(head) if length is None else length)))
    return HttpCase(
        f"http/infer/{name}",
        path or f"/v2/models/{model}/infer",
        "POST",
        head + raw,
        tuple(headers),
    )


def _one(**changes) -> dict:
    tensor = {**TWO, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def _binary(size=8, shape=(2,), datatype="FP32", name="INPUT0", **rest) -> dict:
    return {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": list(shape),
                "parameters": {"binary_data_size": size},
            }
        ],
        **rest,
    }


def _good():
    yield _infer("good", _one())
    yield _infer("good_id", {"id": "a-1", **_one()})
    yield _infer("good_empty_id", {"id": "", **_one()})
    yield _infer("good_output_named", {**_one(), "outputs": [{"name": "OUTPUT0"}]})
    yield _infer("good_outputs_empty", {**_one(), "outputs": []})
    yield _infer("good_version", _one(), path="/v2/models/identity/versions/1/infer")
    yield _infer("good_nested_data", _one(shape=[2, 2], data=[[1, 2], [3, 4]], name="INPUT0"), model="identity_batched")
    yield _infer("good_flat_data", {"inputs": [ROWS]}, model="identity_batched")
    yield _infer("good_ragged_nesting", _one(shape=[2, 2], data=[[1, 2, 3], [4]]), model="identity_batched")
    yield _infer("good_zero_elements", _one(shape=[0], data=[]))
    yield _infer("good_zero_rows", _one(shape=[0, 2], data=[]), model="identity_batched")
    yield _infer("good_integer_for_float", _one(data=[1, 2]))
    yield _infer("good_exponent", b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[3],"data":[1e3,-0.0,1e-42]}]}')
    yield _infer("good_unknown_top_field", {**_one(), "surprise": 1})
    yield _infer("good_unknown_tensor_field", _one(surprise=[1]))
    yield _infer("good_parameters", {**_one(), "parameters": {"a": 1, "b": "x", "c": True, "d": 1.5}})
    yield _infer("good_priority_timeout", {**_one(), "parameters": {"priority": 1, "timeout": 1000000}})
    yield _infer("good_white_space", b'  {\n "inputs" : [ {"name":"INPUT0","datatype":"FP32","shape":[1],"data":[ 7 ]} ] }\n')
    yield _infer("good_binary_in", _binary(), FLOATS)
    yield _infer("good_binary_in_and_out", _binary(parameters={"binary_data_output": True}), FLOATS)
    yield _infer("good_binary_out", {**_one(), "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]})
    yield _infer("good_binary_out_off", {**_one(), "parameters": {"binary_data_output": True}, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False}}]})
    yield _infer("good_binary_no_json_size", _binary(size=8), FLOATS, headers=(("Content-Type", "application/octet-stream"),))
    yield _infer("good_header_length_whole_body", _one(), length=len(json.dumps(_one())))
    yield _infer("good_gzip", gzip.compress(json.dumps(_one()).encode(), mtime=0), headers=(("Content-Encoding", "gzip"),))
    yield _infer("good_deflate", zlib.compress(json.dumps(_one()).encode()), headers=(("Content-Encoding", "deflate"),))
    yield _infer("good_accept_gzip", _one(shape=[64], data=[1] * 64), headers=(("Accept-Encoding", "gzip"),))
    yield _infer("good_accept_deflate", _one(shape=[64], data=[1] * 64), headers=(("Accept-Encoding", "deflate"),))
    yield _infer("good_accept_gzip_error", _one(shape=[3]), headers=(("Accept-Encoding", "gzip"),))
    yield _infer("good_two", {"inputs": [{**ROWS, "shape": [1, 4]}, {"name": "INPUT1", "datatype": "INT32", "shape": [1, 2], "data": [5, 6]}]}, model="identity_two")
    yield _infer("good_two_one_output", {"inputs": [{**ROWS, "shape": [1, 4]}, {"name": "INPUT1", "datatype": "INT32", "shape": [1, 2], "data": [5, 6]}], "outputs": [{"name": "OUTPUT1"}]}, model="identity_two")
    yield _infer("good_two_swapped", {"inputs": [{"name": "INPUT1", "datatype": "INT32", "shape": [1, 2], "data": [5, 6]}, {**ROWS, "shape": [1, 4]}], "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]}, model="identity_two")
    yield _infer("good_optional_missing", _one(), model="identity_optional")
    yield _infer("good_latest", _one(), model="identity_latest")
    yield _infer("good_versions_3", _one(), path="/v2/models/identity_versions/versions/3/infer")
    yield _infer("good_versions_default", _one(), model="identity_versions")
    yield _infer("good_reshape", _one(shape=[1, 4], data=[1, 2, 3, 4]), model="identity_reshape")
    yield _infer("good_scalar", _one(shape=[2, 1], data=[1, 2]), model="identity_scalar")
    yield _infer("good_fixed", _one(shape=[1, 2, 3], data=[1, 2, 3, 4, 5, 6]), model="identity_fixed")
    yield _infer("good_ensemble", {"id": "e", "inputs": [ROWS]}, model="ensemble")
    yield _infer("good_priority_model", {"inputs": [ROWS], "parameters": {"priority": 2}}, model="identity_priority")


def _types():
    values = {
        "BOOL": [True, False],
        "UINT8": [0, 255],
        "UINT16": [0, 65535],
        "UINT32": [0, 4294967295],
        "UINT64": [0, 18446744073709551615],
        "INT8": [-128, 127],
        "INT16": [-32768, 32767],
        "INT32": [-2147483648, 2147483647],
        "INT64": [-9223372036854775808, 9223372036854775807],
        "FP16": [1.5, -2],
        "BF16": [1.5, -2],
        "FP32": [0.1, 3.4e38],
        "FP64": [0.1, 1e300],
        "STRING": ["", "h\u00e9llo \"q\" \\ \n\u0001"],
    }
    sizes = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}
    for kind, data in values.items():
        wire = "BYTES" if kind == "STRING" else kind
        tensor = {"name": f"INPUT_{kind}", "datatype": wire, "shape": [2], "data": data}
        output = {"outputs": [{"name": f"OUTPUT_{kind}"}]}
        yield _infer(f"type_{kind}", {"inputs": [tensor], **output}, model="identity_types")
        raw = (
            struct.pack("<I2sI3s", 2, b"hi", 3, b"\xff\x00z")
            if kind == "STRING"
            else bytes(range(sizes[kind] * 2)) if kind != "BOOL" else b"\x01\x00"
        )
        yield _infer(
            f"type_{kind}_binary",
            {**_binary(len(raw), (2,), wire, f"INPUT_{kind}"), "outputs": [{"name": f"OUTPUT_{kind}", "parameters": {"binary_data": True}}]},
            raw,
            model="identity_types",
        )
        if kind not in ("FP16", "BF16"):
            continue
        yield _infer(f"type_{kind}_binary_in_json_out", {**_binary(len(raw), (2,), wire, f"INPUT_{kind}"), **output}, raw, model="identity_types")
    for name, kind, data in (
        ("uint8_over", "UINT8", [256, 0]),
        ("uint8_negative", "UINT8", [-1, 0]),
        ("int8_over", "INT8", [128, 0]),
        ("int16_over", "INT16", [32768, 0]),
        ("int32_over", "INT32", [2147483648, 0]),
        ("int64_over", "INT64", [9223372036854775808, 0]),
        ("uint64_over", "UINT64", [18446744073709551616, 0]),
        ("uint64_negative", "UINT64", [-1, 0]),
        ("int32_fraction", "INT32", [1.5, 0]),
        ("int32_text", "INT32", ["1", "2"]),
        ("int32_bool", "INT32", [True, False]),
        ("int32_null", "INT32", [None, None]),
        ("int32_object", "INT32", [{}, {}]),
        ("bool_number", "BOOL", [1, 0]),
        ("bool_text", "BOOL", ["true", "false"]),
        ("fp32_text", "FP32", ["1", "2"]),
        ("fp32_over", "FP32", [1e39, 0]),
        ("fp32_bool", "FP32", [True, False]),
        ("fp64_text", "FP64", ["1", "2"]),
        ("bytes_number", "STRING", [1, 2]),
        ("bytes_nested", "STRING", [["a"], ["b"]]),
    ):
        tensor = {"name": f"INPUT_{kind}", "datatype": "BYTES" if kind == "STRING" else kind, "shape": [2], "data": data}
        yield _infer(f"value_{name}", {"inputs": [tensor], "outputs": [{"name": f"OUTPUT_{kind}"}]}, model="identity_types")
    for name, raw, count in (
        ("short_prefix", b"\x02\x00", 1),
        ("prefix_over_end", struct.pack("<I2s", 3, b"ab"), 1),
        ("one_missing", struct.pack("<I2s", 2, b"ab"), 2),
        ("one_too_many", struct.pack("<I2sI1s", 2, b"ab", 1, b"c"), 1),
        ("trailing", struct.pack("<I2s", 2, b"abc") + b"x", 1),
        ("prefix_max", struct.pack("<I", 0xFFFFFFFF), 1),
        ("empty", b"", 0),
    ):
        yield _infer(f"bytes_{name}", {**_binary(len(raw), (count,), "BYTES", "INPUT_STRING"), "outputs": [{"name": "OUTPUT_STRING"}]}, raw, model="identity_types", length=None if raw else len(json.dumps({**_binary(len(raw), (count,), "BYTES", "INPUT_STRING"), "outputs": [{"name": "OUTPUT_STRING"}]})))


def _bad_documents():
    yield _infer("empty_body", b"")
    yield _infer("not_json", b"hello")
    yield _infer("truncated", b'{"inputs":[')
    yield _infer("trailing_garbage", json.dumps(_one()).encode() + b"xx")
    yield _infer("trailing_comma", b'{"inputs":[],}')
    yield _infer("array", b"[]")
    yield _infer("number", b"7")
    yield _infer("null", b"null")
    yield _infer("empty_object", b"{}")
    yield _infer("not_utf8", b'{"id":"\xff\xfe","inputs":[]}')
    yield _infer("deep", b'{"inputs":' + b"[" * 200 + b"]" * 200 + b"}")
    yield _infer("duplicate_key", b'{"inputs":[],"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1]}]}')
    yield _infer("nan", b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[NaN]}]}')
    yield _infer("id_number", {"id": 7, **_one()})
    yield _infer("inputs_missing", {"outputs": [{"name": "OUTPUT0"}]})
    yield _infer("inputs_empty", {"inputs": []})
    yield _infer("inputs_object", {"inputs": {}})
    yield _infer("inputs_null", {"inputs": None})
    yield _infer("inputs_numbers", {"inputs": [1]})
    yield _infer("outputs_object", {**_one(), "outputs": {}})
    yield _infer("outputs_numbers", {**_one(), "outputs": [1]})
    yield _infer("output_no_name", {**_one(), "outputs": [{}]})
    yield _infer("output_name_number", {**_one(), "outputs": [{"name": 1}]})
    yield _infer("output_unknown", {**_one(), "outputs": [{"name": "NONE"}]})
    yield _infer("output_twice", {**_one(), "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]})
    yield _infer("output_binary_not_bool", {**_one(), "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]})
    yield _infer("output_parameters_list", {**_one(), "outputs": [{"name": "OUTPUT0", "parameters": []}]})
    yield _infer("parameters_list", {**_one(), "parameters": []})
    yield _infer("parameters_null", {**_one(), "parameters": None})
    yield _infer("parameter_object", {**_one(), "parameters": {"a": {}}})
    yield _infer("parameter_null", {**_one(), "parameters": {"a": None}})
    yield _infer("parameter_list", {**_one(), "parameters": {"a": [1]}})
    yield _infer("parameter_reserved", {**_one(), "parameters": {"triton_x": 1}})
    yield _infer("parameter_priority_text", {**_one(), "parameters": {"priority": "high"}})
    yield _infer("parameter_priority_negative", {**_one(), "parameters": {"priority": -1}})
    yield _infer("parameter_timeout_text", {**_one(), "parameters": {"timeout": "1"}})
    yield _infer("parameter_sequence_id_bool", {**_one(), "parameters": {"sequence_id": True}})
    yield _infer("parameter_sequence_start_int", {**_one(), "parameters": {"sequence_start": 1}})
    yield _infer("parameter_binary_output_int", {**_one(), "parameters": {"binary_data_output": 1}})
    yield _infer("parameter_headers", {**_one(), "parameters": {"headers": {"a": "b"}}})
    yield _infer("priority_over", {"inputs": [ROWS], "parameters": {"priority": 3}}, model="identity_priority")
    yield _infer("content_encoding_unknown", _one(), headers=(("Content-Encoding", "br"),))
    yield _infer("content_encoding_gzip_plain", _one(), headers=(("Content-Encoding", "gzip"),))
    yield _infer("accept_encoding_unknown", _one(), headers=(("Accept-Encoding", "br"),))


def _bad_tensors():
    yield _infer("input_no_name", _one(name=None))
    yield _infer("input_name_number", _one(name=1))
    yield _infer("input_name_empty", _one(name=""))
    yield _infer("input_unknown", _one(name="NONE"))
    yield _infer("input_extra", {"inputs": [TWO, {**TWO, "name": "NONE"}]})
    yield _infer("input_twice", {"inputs": [TWO, TWO]})
    yield _infer("input_missing", {"inputs": [{**ROWS, "shape": [1, 4]}]}, model="identity_two")
    yield _infer("inputs_all_missing", {"inputs": []}, model="identity_two")
    yield _infer("optional_only", {"inputs": [{"name": "INPUT1", "datatype": "INT32", "shape": [2], "data": [1, 2]}]}, model="identity_optional")
    yield _infer("datatype_missing", _one(datatype=None))
    yield _infer("datatype_unknown", _one(datatype="FP33"))
    yield _infer("datatype_lower_case", _one(datatype="fp32"))
    yield _infer("datatype_empty", _one(datatype=""))
    yield _infer("datatype_number", _one(datatype=1))
    yield _infer("datatype_wrong", _one(datatype="INT32", data=[1, 2]))
    yield _infer("datatype_wrong_size", _one(datatype="FP64"))
    yield _infer("datatype_bytes", _one(datatype="BYTES", data=["a", "b"]))
    yield _infer("shape_missing", _one(shape=None))
    yield _infer("shape_number", _one(shape=2))
    yield _infer("shape_text", _one(shape=["2"]))
    yield _infer("shape_fraction", _one(shape=[2.0]))
    yield _infer("shape_empty", _one(shape=[], data=[1]))
    yield _infer("shape_rank", _one(shape=[1, 2]))
    yield _infer("shape_negative", _one(shape=[-1]))
    yield _infer("shape_negative_two", _one(shape=[-2]))
    yield _infer("shape_product_negative", _one(shape=[-1, -2]))
    yield _infer("shape_over_int64", b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[9223372036854775808],"data":[1]}]}')
    yield _infer("shape_fixed_wrong", _one(shape=[1, 3, 2], data=[1, 2, 3, 4, 5, 6]), model="identity_fixed")
    yield _infer("shape_fixed_rank", _one(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]), model="identity_fixed")
    yield _infer("shape_batch_negative", _one(shape=[-1, 2], data=[1, 2]), model="identity_batched")
    yield _infer("batch_too_large", _one(shape=[9, 1], data=[1] * 9), model="identity_batched")
    yield _infer("batch_differs", {"inputs": [{**ROWS, "shape": [1, 4]}, {"name": "INPUT1", "datatype": "INT32", "shape": [2, 2], "data": [5, 6, 7, 8]}]}, model="identity_two")
    yield _infer("ensemble_batch_too_large", _one(shape=[9, 1], data=[1] * 9), model="ensemble")
    yield _infer("reshape_wrong", _one(shape=[1, 2, 2], data=[1, 2, 3, 4]), model="identity_reshape")
    yield _infer("data_missing", _one(data=None))
    yield _infer("data_null", b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":null}]}')
    yield _infer("data_number", _one(data=1, shape=[1]))
    yield _infer("data_text", _one(data="ab"))
    yield _infer("data_object", _one(data={}))
    yield _infer("data_too_few", _one(data=[1]))
    yield _infer("data_too_many", _one(data=[1, 2, 3]))
    yield _infer("data_empty", _one(data=[]))
    yield _infer("data_for_zero_elements", _one(shape=[0], data=[1]))
    yield _infer("parameters_not_object", _one(parameters=1))
    yield _infer("version_missing", _one(), path="/v2/models/identity/versions/9/infer")
    yield _infer("version_hidden", _one(), path="/v2/models/identity_latest/versions/1/infer")
    yield _infer("version_zero", _one(), path="/v2/models/identity/versions/0/infer")
    yield _infer("version_negative", _one(), path="/v2/models/identity/versions/-1/infer")
    yield _infer("version_text", _one(), path="/v2/models/identity/versions/abc/infer")
    yield _infer("version_empty", _one(), path="/v2/models/identity/versions//infer")
    yield _infer("version_over", _one(), path="/v2/models/identity/versions/99999999999999999999/infer")
    yield _infer("model_unknown", _one(), model="no_such")
    yield _infer("model_unknown_bad_json", b"{", model="no_such")
    yield _infer("decoupled", _one(), model="identity_decoupled")
    yield _infer("decoupled_bad_shape", _one(shape=[3]), model="identity_decoupled")
    yield _infer("sequence_no_id", {"inputs": [{**ROWS, "shape": [1, 4]}]}, model="identity_sequence")
    yield _infer("sequence_not_started", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": 11}}, model="identity_sequence")
    yield _infer("sequence_start", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": 12, "sequence_start": True}}, model="identity_sequence")
    yield _infer("sequence_end", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": 12, "sequence_end": True}}, model="identity_sequence")
    yield _infer("sequence_ended", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": 12}}, model="identity_sequence")
    yield _infer("sequence_text_id", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": "abc", "sequence_start": True, "sequence_end": True}}, model="identity_sequence")
    yield _infer("sequence_batch", {"inputs": [ROWS], "parameters": {"sequence_id": 13, "sequence_start": True, "sequence_end": True}}, model="identity_sequence")
    yield _infer("sequence_id_zero", {"inputs": [{**ROWS, "shape": [1, 4]}], "parameters": {"sequence_id": 0, "sequence_start": True}}, model="identity_sequence")
    yield _infer("sequence_on_plain", {**_one(), "parameters": {"sequence_id": 5, "sequence_start": True}})


def _bad_binary():
    yield _infer("binary_size_too_small", _binary(4), FLOATS[:4])
    yield _infer("binary_size_too_large", _binary(12), FLOATS + b"\0\0\0\0")
    yield _infer("binary_size_over_body", _binary(8), FLOATS[:4])
    yield _infer("binary_size_under_body", _binary(8), FLOATS + b"\0\0\0\0")
    yield _infer("binary_size_negative", _binary(-1), FLOATS)
    yield _infer("binary_size_text", _binary("8"), FLOATS)
    yield _infer("binary_size_huge", _binary(1 << 62), FLOATS)
    yield _infer("binary_size_zero", _binary(0), FLOATS)
    yield _infer("binary_without_header", json.dumps(_binary(8)).encode() + FLOATS)
    yield _infer("binary_and_data", {"inputs": [{**TWO, "parameters": {"binary_data_size": 8}}]}, FLOATS)
    yield _infer("binary_neither", _one(data=None, parameters={}), FLOATS)
    yield _infer("binary_wrong_type", _binary(8, (2,), "INT32"), FLOATS)
    yield _infer("binary_two_share", {"inputs": [_binary(16, (1, 4))["inputs"][0], _binary(8, (1, 2), "INT32", "INPUT1")["inputs"][0]]}, FLOATS, model="identity_two")
    yield _infer("header_length_too_small", _binary(8), FLOATS, length=10)
    yield _infer("header_length_too_large", _binary(8), FLOATS, length=100000)
    yield _infer("header_length_zero", _binary(8), FLOATS, length=0)
    yield _infer("header_length_negative", _binary(8), FLOATS, length=-1)
    yield _infer("header_length_text", _binary(8), FLOATS, length="abc")
    yield _infer("header_length_trailing_text", _one(), length="10abc")
    yield _infer("header_length_over_int64", _one(), length="99999999999999999999")
    yield _infer("header_length_empty", _one(), length="")


def _classification():
    four = _one(shape=[1, 4], data=[0.1, 0.7, 0.2, 0.5])
    for name, count in (("two", 2), ("all", 9), ("zero", 0), ("negative", -1), ("text", "2")):
        yield _infer(f"classification_{name}", {**four, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": count}}]}, model="identity_labels")
    yield _infer("classification_batch", {**_one(shape=[2, 4], data=[1, 2, 3, 4, 4, 3, 2, 1]), "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2}}]}, model="identity_labels")
    yield _infer("classification_binary", {**four, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1, "binary_data": True}}]}, model="identity_labels")
    yield _infer("classification_no_labels", {**_one(), "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2}}]})
    yield _infer("classification_ensemble", {"inputs": [ROWS], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]}, model="ensemble")
    yield _infer("classification_integers", {"inputs": [{"name": "INPUT_INT32", "datatype": "INT32", "shape": [3], "data": [5, -7, 9]}], "outputs": [{"name": "OUTPUT_INT32", "parameters": {"classification": 2}}]}, model="identity_types")
    yield _infer("shared_memory_unknown_in", _one(data=None, parameters={"shared_memory_region": "no_such", "shared_memory_byte_size": 8}))
    yield _infer("shared_memory_unknown_out", {**_one(), "outputs": [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "no_such", "shared_memory_byte_size": 8}}]})
    yield _infer("shared_memory_no_size", _one(data=None, parameters={"shared_memory_region": "no_such"}))
    yield _infer("shared_memory_and_data", _one(parameters={"shared_memory_region": "no_such", "shared_memory_byte_size": 8}))
    yield _infer("shared_memory_and_binary", _one(data=None, parameters={"shared_memory_region": "no_such", "shared_memory_byte_size": 8, "binary_data_size": 8}), FLOATS)
    yield _infer("shared_memory_and_classification", {**four, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2, "shared_memory_region": "no_such", "shared_memory_byte_size": 8}}]}, model="identity_labels")


def killers():
    """For the end, because the real server does not survive all of them."""
    yield _infer("classification_bytes", {"inputs": [{"name": "INPUT_STRING", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}], "outputs": [{"name": "OUTPUT_STRING", "parameters": {"classification": 2}}]}, model="identity_types")
    yield _infer("shape_huge", _one(shape=[1 << 62], data=[1]))
    yield _infer("shape_overflow", _one(shape=[1 << 32, 1 << 32], data=[1]), model="identity_batched")
    yield _infer("shape_huge_binary", _binary(8, (1 << 62,)), FLOATS)
    yield _infer("shape_max_int64", _one(shape=[(1 << 63) - 1], data=[1]))
    yield _infer("shape_wraps_to_zero", _binary(0, (1 << 62,)), b"\0")
    yield _infer("shape_wraps_to_match", _one(shape=[(1 << 62) + 2]))


def cases():
    """Those that the real server survives, in the order in which they are sent."""
    for group in (_good, _types, _bad_documents, _bad_tensors, _bad_binary, _classification):
        yield from group()
