"""The gRPC requests of the differential tests, and those that load and unload models."""

from __future__ import annotations

import json
import os
import struct

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from .cases import GrpcCase, HttpCase, StreamCase
from .repository import BROKEN

# What others who run these tests at the same time do not have.
OWN = f"{os.getpid()}_"
SHARED_KEYS = tuple(f"/nereid_differential_{OWN}{letter}" for letter in "abc")
SHARED_BYTES = 8192
FLOATS = struct.pack("<2f", 1.5, -2.25)
TWO = {"name": "INPUT0", "datatype": "FP32", "shape": [2]}
FOUR = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 4]}
FOUR_FLOATS = struct.pack("<4f", 0.1, 0.7, 0.2, 0.5)
PAIR = {"name": "INPUT1", "datatype": "INT32", "shape": [1, 2]}
PAIR_INTS = struct.pack("<2i", 5, 6)


def _request(inputs=(TWO,), raw=(FLOATS,), model="identity", **rest):
    message = json_format.ParseDict(
        {"model_name": model, "inputs": list(inputs), **rest}, pb.ModelInferRequest()
    )
    message.raw_input_contents.extend(raw)
    return message


def _infer(name, /, *args, **kwargs) -> GrpcCase:
    return GrpcCase(f"grpc/infer/{name}", "ModelInfer", _request(*args, **kwargs))


def _call(case, method, setup="default", /, **fields) -> GrpcCase:
    message = json_format.ParseDict(fields, getattr(pb, f"{method}Request")())
    prefix = "grpc" if setup == "default" else setup
    return GrpcCase(f"{prefix}/{case}", method, message, setup)


def _contents(field, values, **tensor):
    return {**TWO, **tensor, "contents": {field: values}}


def _parameters(**values):
    """A parameter map out of Python values, by type."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return {"parameters": {key: {kinds[type(value)]: value} for key, value in values.items()}}


def _good():
    yield _infer("good")
    yield _infer("good_id", id="a-1")
    yield _infer("good_version", model_version="1")
    yield _infer("good_output_named", outputs=[{"name": "OUTPUT0"}])
    yield _infer("good_contents", [_contents("fp32_contents", [1.5, -2.25])], ())
    yield _infer("good_zero_elements", [{**TWO, "shape": [0]}], (b"",))
    yield _infer("good_zero_rows", [{**TWO, "shape": [0, 2]}], (b"",), "identity_batched")
    yield _infer("good_parameters", **_parameters(a=1, b="x", c=True, d=1.5))
    yield _infer("good_unsigned_parameter", parameters={"a": {"uint64_param": 7}})
    yield _infer("good_priority_timeout", **_parameters(priority=1, timeout=1000000))
    yield _infer("good_priority_unsigned", parameters={"priority": {"uint64_param": 1}})
    yield _infer("good_two", [FOUR, PAIR], (FOUR_FLOATS, PAIR_INTS), "identity_two")
    yield _infer("good_two_swapped", [PAIR, FOUR], (PAIR_INTS, FOUR_FLOATS), "identity_two", outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0"}])
    yield _infer("good_two_one_output", [FOUR, PAIR], (FOUR_FLOATS, PAIR_INTS), "identity_two", outputs=[{"name": "OUTPUT1"}])
    yield _infer("good_two_contents", [{**FOUR, "contents": {"fp32_contents": [1, 2, 3, 4]}}, {**PAIR, "contents": {"int_contents": [5, 6]}}], (), "identity_two")
    yield _infer("good_optional_missing", model="identity_optional")
    yield _infer("good_versions_default", model="identity_versions")
    yield _infer("good_reshape", [FOUR], (FOUR_FLOATS,), "identity_reshape")
    yield _infer("good_ensemble", [FOUR], (FOUR_FLOATS,), "ensemble", id="e")
    yield _infer("good_600_kb", [{**TWO, "shape": [150000]}], (bytes(600000),))
    for kind, field, values in (
        ("BOOL", "bool_contents", [True, False]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 4294967295]),
        ("UINT64", "uint64_contents", [0, 18446744073709551615]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-2147483648, 2147483647]),
        ("INT64", "int64_contents", [-9223372036854775808, 9223372036854775807]),
        ("FP16", "fp32_contents", [1.5, -2]),
        ("BF16", "fp32_contents", [1.5, -2]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("STRING", "bytes_contents", ["", "aGk="]),
        ("UINT8", "int_contents", [1, 2]),
        ("FP32", "fp64_contents", [1, 2]),
        ("INT32", "int64_contents", [1, 2]),
    ):
        wire = "BYTES" if kind == "STRING" else kind
        tensor = _contents(field, values, name=f"INPUT_{kind}", datatype=wire)
        yield _infer(f"contents_{kind}_{field}", [tensor], (), "identity_types", outputs=[{"name": f"OUTPUT_{kind}"}])
    for kind, value in (("UINT8", 256), ("UINT16", 65536)):
        yield _infer(f"contents_{kind}_over", [_contents("uint_contents", [value, 1], name=f"INPUT_{kind}", datatype=kind)], (), "identity_types", outputs=[{"name": f"OUTPUT_{kind}"}])
    for kind, value in (("INT8", 128), ("INT16", 32768)):
        yield _infer(f"contents_{kind}_over", [_contents("int_contents", [value, 1], name=f"INPUT_{kind}", datatype=kind)], (), "identity_types", outputs=[{"name": f"OUTPUT_{kind}"}])


def _bad():
    yield _infer("empty", (), ())
    yield GrpcCase("grpc/infer/nothing", "ModelInfer", pb.ModelInferRequest())
    yield GrpcCase("grpc/infer/not_protobuf", "ModelInfer", b"\xff\xff\xff\xff")
    yield GrpcCase("grpc/infer/not_utf8_name", "ModelInfer", b"\x0a\x02\xff\xfe")
    yield GrpcCase("grpc/infer/unknown_field", "ModelInfer", _request().SerializeToString() + b"\xa0\x06\x01")
    yield _infer("model_unknown", model="no_such")
    yield _infer("version_missing", model_version="9")
    yield _infer("version_hidden", model="identity_latest", model_version="1")
    yield _infer("version_zero", model_version="0")
    yield _infer("version_negative", model_version="-1")
    yield _infer("version_text", model_version="abc")
    yield _infer("version_trailing_text", model_version="1abc")
    yield _infer("version_over", model_version="99999999999999999999")
    yield _infer("input_name_empty", [{**TWO, "name": ""}])
    yield _infer("input_unknown", [{**TWO, "name": "NONE"}])
    yield _infer("input_unknown_with_id", [{**TWO, "name": "NONE"}], id="a-1")
    yield _infer("shape_rank_with_id", [{**TWO, "shape": [1, 2]}], id="a-1")
    yield _infer("input_extra", [TWO, {**TWO, "name": "NONE"}], (FLOATS, FLOATS))
    yield _infer("input_twice", [TWO, TWO], (FLOATS, FLOATS))
    yield _infer("input_missing", [FOUR], (FOUR_FLOATS,), "identity_two")
    yield _infer("optional_only", [{**PAIR, "shape": [2]}], (PAIR_INTS,), "identity_optional")
    yield _infer("output_unknown", outputs=[{"name": "NONE"}])
    yield _infer("output_twice", outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}])
    yield _infer("output_name_empty", outputs=[{"name": ""}])
    yield _infer("datatype_empty", [{**TWO, "datatype": ""}])
    yield _infer("datatype_unknown", [{**TWO, "datatype": "FP33"}])
    yield _infer("datatype_wrong", [{**TWO, "datatype": "INT32"}])
    yield _infer("shape_empty", [{**TWO, "shape": []}], (FLOATS[:4],))
    yield _infer("shape_rank", [{**TWO, "shape": [1, 2]}])
    yield _infer("shape_negative", [{**TWO, "shape": [-1]}])
    yield _infer("shape_negative_two", [{**TWO, "shape": [-2]}])
    yield _infer("shape_product_negative", [{**TWO, "shape": [-1, -2]}], model="identity_batched")
    yield _infer("shape_fixed_wrong", [{**TWO, "shape": [1, 3, 2]}], (bytes(24),), "identity_fixed")
    yield _infer("shape_fixed_rank", [{**TWO, "shape": [2, 3]}], (bytes(24),), "identity_fixed")
    yield _infer("batch_too_large", [{**TWO, "shape": [9, 1]}], (bytes(36),), "identity_batched")
    yield _infer("batch_differs", [FOUR, {**PAIR, "shape": [2, 2]}], (FOUR_FLOATS, PAIR_INTS * 2), "identity_two")
    yield _infer("raw_missing", raw=())
    yield _infer("raw_too_many", raw=(FLOATS, FLOATS))
    yield _infer("raw_too_short", raw=(FLOATS[:4],))
    yield _infer("raw_too_long", raw=(FLOATS + b"\0\0\0\0",))
    yield _infer("raw_odd", raw=(FLOATS[:7],))
    yield _infer("raw_empty", raw=(b"",))
    yield _infer("raw_one_of_two", [FOUR, PAIR], (FOUR_FLOATS,), "identity_two")
    yield _infer("raw_and_contents", [_contents("fp32_contents", [1, 2])])
    yield _infer("raw_for_one_contents_for_other", [FOUR, {**PAIR, "contents": {"int_contents": [5, 6]}}], (FOUR_FLOATS,), "identity_two")
    yield _infer("contents_too_few", [_contents("fp32_contents", [1])], ())
    yield _infer("contents_too_many", [_contents("fp32_contents", [1, 2, 3])], ())
    yield _infer("contents_empty", [{**TWO, "contents": {}}], ())
    yield _infer("contents_two_kinds", [{**TWO, "contents": {"fp32_contents": [1, 2], "int_contents": [1, 2]}}], ())
    yield _infer("bytes_short_prefix", [{"name": "INPUT0", "datatype": "BYTES", "shape": [1]}], (b"\x02\x00",), "identity_string")
    yield _infer("bytes_prefix_over_end", [{"name": "INPUT0", "datatype": "BYTES", "shape": [1]}], (struct.pack("<I2s", 3, b"ab"),), "identity_string")
    yield _infer("bytes_one_too_many", [{"name": "INPUT0", "datatype": "BYTES", "shape": [1]}], (struct.pack("<I2sI1s", 2, b"ab", 1, b"c"),), "identity_string")
    yield _infer("bytes_trailing", [{"name": "INPUT0", "datatype": "BYTES", "shape": [1]}], (struct.pack("<I2s", 2, b"ab") + b"x",), "identity_string")
    yield _infer("bytes_empty_buffer", [{"name": "INPUT0", "datatype": "BYTES", "shape": [1]}], (b"",), "identity_string")
    yield _infer("decoupled", model="identity_decoupled")
    yield _infer("parameter_reserved", **_parameters(triton_x=1))
    yield _infer("parameter_empty", parameters={"a": {}})
    yield _infer("parameter_priority_text", **_parameters(priority="high"))
    yield _infer("parameter_priority_negative", **_parameters(priority=-1))
    yield _infer("parameter_timeout_text", **_parameters(timeout="1"))
    yield _infer("parameter_sequence_id_bool", **_parameters(sequence_id=True))
    yield _infer("parameter_sequence_start_int", **_parameters(sequence_start=1))
    yield _infer("parameter_headers", **_parameters(headers="a"))
    yield _infer("priority_over", [FOUR], (FOUR_FLOATS,), "identity_priority", **_parameters(priority=3))
    yield _infer("sequence_no_id", [FOUR], (FOUR_FLOATS,), "identity_sequence")
    yield _infer("sequence_not_started", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=21))
    yield _infer("sequence_start", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=22, sequence_start=True))
    yield _infer("sequence_restart", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=22, sequence_start=True))
    yield _infer("sequence_end", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=22, sequence_end=True))
    yield _infer("sequence_ended", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=22))
    yield _infer("sequence_text_id", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id="abc", sequence_start=True, sequence_end=True))
    yield _infer("sequence_end_alone", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=23, sequence_end=True))
    yield _infer("sequence_end_alone_again", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=23, sequence_end=True))
    yield _infer("sequence_id_zero", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=0, sequence_start=True))
    yield _infer("sequence_id_negative", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=-1, sequence_start=True, sequence_end=True))
    yield _infer("sequence_id_empty", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id="", sequence_start=True))
    yield _infer("sequence_id_long", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id="x" * 129, sequence_start=True))
    yield _infer("sequence_flags_without_id", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_start=True, sequence_end=True))
    yield _infer("sequence_batch", [{**FOUR, "shape": [2, 2]}], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=24, sequence_start=True))
    yield _infer("sequence_bad_input", [{**FOUR, "shape": [1, 3]}], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=25, sequence_start=True))
    yield _infer("sequence_after_bad_input", [FOUR], (FOUR_FLOATS,), "identity_sequence", **_parameters(sequence_id=25, sequence_end=True))
    yield _infer("sequence_on_plain", **_parameters(sequence_id=5, sequence_start=True))
    for name, value in (("two", 2), ("all", 9), ("zero", 0), ("negative", -1), ("text", "2")):
        yield _infer(f"classification_{name}", [FOUR], (FOUR_FLOATS,), "identity_labels", outputs=[{"name": "OUTPUT0", **_parameters(classification=value)}])
    yield _infer("classification_no_labels", outputs=[{"name": "OUTPUT0", **_parameters(classification=2)}])
    region = {"shared_memory_region": "no_such", "shared_memory_byte_size": 8}
    yield _infer("shared_memory_unknown_in", [{**TWO, **_parameters(**region)}], ())
    yield _infer("shared_memory_unknown_out", outputs=[{"name": "OUTPUT0", **_parameters(**region)}])
    yield _infer("shared_memory_and_raw", [{**TWO, **_parameters(**region)}])
    yield _infer("shared_memory_and_contents", [{**_contents("fp32_contents", [1, 2]), **_parameters(**region)}], ())
    yield _infer("shared_memory_no_size", [{**TWO, **_parameters(shared_memory_region="no_such")}], ())
    yield _infer("shared_memory_negative_size", [{**TWO, **_parameters(**{**region, "shared_memory_byte_size": -8})}], ())
    yield _infer("shared_memory_and_classification", [FOUR], (FOUR_FLOATS,), "identity_labels", outputs=[{"name": "OUTPUT0", **_parameters(classification=2, **region)}])


def _metadata():
    yield _call("server/live", "ServerLive")
    yield _call("server/ready", "ServerReady")
    yield _call("server/metadata", "ServerMetadata")
    for model in ("identity", "identity_batched", "identity_types", "identity_labels", "identity_reshape", "identity_versions", "identity_sequence", "identity_priority", "identity_whole", "identity_whole_sequence", "ensemble", "no_such", ""):
        for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
            yield _call(f"model/{method}_{model or 'empty'}", method, name=model)
    for label, version in (("known", "1"), ("missing", "9"), ("text", "abc"), ("zero", "0"), ("over", "99999999999999999999")):
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            yield _call(f"model/{method}_version_{label}", method, name="identity_fixed", version=version)
    yield _call("model/ModelStatistics_no_such", "ModelStatistics", name="no_such")
    yield _call("index/all", "RepositoryIndex")
    yield _call("index/ready", "RepositoryIndex", ready=True)
    yield _call("index/named", "RepositoryIndex", repository_name="other")
    yield _call("load/not_allowed", "RepositoryModelLoad", model_name="identity")
    yield _call("unload/not_allowed", "RepositoryModelUnload", model_name="identity")
    yield _call("shm/status", "SystemSharedMemoryStatus")
    yield _call("shm/status_unknown", "SystemSharedMemoryStatus", name="no_such")
    yield _call("shm/register_missing_key", "SystemSharedMemoryRegister", name="r", key="/no_such_nereid", byte_size=8)
    yield _call("shm/register_empty", "SystemSharedMemoryRegister")
    yield _call("shm/unregister_unknown", "SystemSharedMemoryUnregister", name="no_such")
    yield _call("shm/unregister_all", "SystemSharedMemoryUnregister")
    yield _call("cuda_shm/status", "CudaSharedMemoryStatus")
    yield _call("cuda_shm/status_unknown", "CudaSharedMemoryStatus", name="no_such")
    yield _call("cuda_shm/register", "CudaSharedMemoryRegister", name="r", raw_handle="A" * 88, byte_size=8)
    yield _call("cuda_shm/unregister_unknown", "CudaSharedMemoryUnregister", name="no_such")
    yield _call("cuda_shm/unregister_all", "CudaSharedMemoryUnregister")
    yield _call("trace/get", "TraceSetting")
    yield _call("trace/get_model", "TraceSetting", model_name="identity")
    yield _call("trace/get_unknown_model", "TraceSetting", model_name="no_such")
    yield _call("trace/set_bad_rate", "TraceSetting", settings={"trace_rate": {"value": ["x"]}})
    yield _call("trace/set_two_values", "TraceSetting", settings={"trace_rate": {"value": ["1", "2"]}})
    yield _call("trace/set_unknown", "TraceSetting", settings={"no_such": {"value": ["1"]}})
    yield _call("trace/set_file", "TraceSetting", settings={"trace_file": {"value": ["x.json"]}})
    yield _call("trace/set_model", "TraceSetting", model_name="identity", settings={"trace_rate": {"value": ["7"]}})
    yield _call("trace/clear_model", "TraceSetting", model_name="identity", settings={"trace_rate": {}})
    yield _call("trace/set_level_off_twice", "TraceSetting", settings={"trace_level": {"value": ["OFF", "OFF"]}})
    yield _call("trace/set_level_unknown", "TraceSetting", settings={"trace_level": {"value": ["x"]}})
    yield _call("trace/set_level_no_file", "TraceSetting", settings={"trace_level": {"value": ["TENSORS"]}})
    yield _call("trace/set_count_text", "TraceSetting", settings={"trace_count": {"value": ["x"]}})
    yield _call("trace/set_frequency_over", "TraceSetting", settings={"log_frequency": {"value": ["99999999999"]}})
    yield _call("trace/set_rate_empty", "TraceSetting", settings={"trace_rate": {"value": [""]}})
    yield _call("trace/set_mode_unknown", "TraceSetting", settings={"trace_mode": {"value": ["x"]}})
    yield _call("logging/set_format_bool", "LogSettings", settings={"log_format": {"bool_param": True}})
    yield _call("logging/set_nothing", "LogSettings", settings={"log_error": {}})
    yield _call("logging/set_warning", "LogSettings", settings={"log_warning": {"bool_param": False}})
    yield _call("logging/set_warning_back", "LogSettings", settings={"log_warning": {"bool_param": True}})
    yield _call("logging/get", "LogSettings")
    yield _call("logging/set", "LogSettings", settings={"log_info": {"bool_param": True}})
    yield _call("logging/set_bad_type", "LogSettings", settings={"log_info": {"uint32_param": 1}})
    yield _call("logging/set_bad_level", "LogSettings", settings={"log_verbose_level": {"string_param": "1"}})
    yield _call("logging/set_unknown", "LogSettings", settings={"no_such": {"uint32_param": 1}})
    yield _call("logging/set_file", "LogSettings", settings={"log_file": {"string_param": "/x/y/z.log"}})
    yield _call("logging/set_bad_format", "LogSettings", settings={"log_format": {"string_param": "x"}})


def shared_memory():
    """With shared-memory objects of `SHARED_BYTES` bytes that hold 0.0, 1.0, 2.0 …

    Two things are left out because the real server's answer is a matter of chance: a second region on
    a key that has one (it uses a closed descriptor), and inference from a region that was registered
    with an offset (it reads memory beyond its mapping).
    """

    def call(case, method, /, **fields):
        return _call(case, method, "shared_memory", **fields)

    def infer(case, region_in=None, region_out=None, tensor=TWO, raw=(), model="identity"):
        inputs = [{**tensor, **_parameters(**region_in)}] if region_in else [tensor]
        outputs = [{"name": "OUTPUT0", **_parameters(**region_out)}] if region_out else []
        message = _request(inputs, raw, model, outputs=outputs)
        return GrpcCase(f"shared_memory/infer_{case}", "ModelInfer", message, "shared_memory")

    def region(name="r", size=8, offset=None):
        place = {"shared_memory_region": name, "shared_memory_byte_size": size}
        return place if offset is None else {**place, "shared_memory_offset": offset}

    register = "SystemSharedMemoryRegister"
    key, second, third = SHARED_KEYS
    yield call("register_over_end", register, name="x", key=key, byte_size=SHARED_BYTES + 1)
    yield call("register_offset_over_end", register, name="x", key=key, offset=SHARED_BYTES, byte_size=8)
    yield call("register_size_zero", register, name="x", key=key)
    yield call("register_wraps", register, name="x", key=key, offset=(1 << 64) - 8, byte_size=16)
    yield call("register_key_with_slashes", register, name="x", key="/a/../b", byte_size=8)
    yield call("register_name_empty", register, key=key, byte_size=8)
    yield call("unregister_leftovers", "SystemSharedMemoryUnregister")
    yield call("register", register, name="r", key=key, byte_size=64)
    yield call("register_again", register, name="r", key=key, byte_size=64)
    yield call("register_second", register, name="s", key=second, byte_size=64)
    yield call("register_offset_not_of_a_page", register, name="u", key=third, offset=64, byte_size=64)
    yield call("unregister_offset_not_of_a_page", "SystemSharedMemoryUnregister", name="u")
    yield call("status", "SystemSharedMemoryStatus")
    yield call("status_one", "SystemSharedMemoryStatus", name="s")
    yield infer("in", region())
    yield infer("in_offset", region(offset=16))
    yield infer("in_second_region", region("s"))
    yield infer("in_size_wrong", region(size=12))
    yield infer("in_over_end", region(offset=60))
    yield infer("in_offset_at_end", region(offset=64))
    yield infer("in_offset_huge", region(offset=1 << 62))
    yield infer("in_offset_negative", region(offset=-4))
    yield infer("in_size_over_region", region(size=1000))
    yield infer("out", None, region(offset=32), raw=(FLOATS,))
    yield infer("out_read_back", region(offset=32))
    yield infer("out_too_small", None, region(size=4), raw=(FLOATS,))
    yield infer("out_larger", None, region(size=32, offset=32), raw=(FLOATS,))
    yield infer("out_over_end", None, region(offset=60), raw=(FLOATS,))
    yield infer("in_and_out", region(offset=4), region("s", offset=8))
    yield infer("in_and_out_read_back", region("s", offset=8))
    yield infer("batched", region(size=16), None, FOUR, model="identity_batched")
    yield infer("unaligned", region(offset=2))
    yield HttpCase("shared_memory/http_status", "/v2/systemsharedmemory/status", setup="shared_memory")
    yield HttpCase("shared_memory/http_register_again", "/v2/systemsharedmemory/region/r/register", "POST", json.dumps({"key": key, "byte_size": 64}).encode(), setup="shared_memory")
    body = {"inputs": [{**TWO, "parameters": region()}], "outputs": [{"name": "OUTPUT0", "parameters": region(offset=48)}]}
    yield HttpCase("shared_memory/http_infer", "/v2/models/identity/infer", "POST", json.dumps(body).encode(), setup="shared_memory")
    yield call("unregister", "SystemSharedMemoryUnregister", name="r")
    yield infer("unregistered", region())
    yield call("unregister_all", "SystemSharedMemoryUnregister")
    yield call("status_end", "SystemSharedMemoryStatus")


def _streams():
    bad = _request([{**TWO, "shape": [1, 2]}])
    unknown = _request(model="no_such")
    decoupled = _request(model="identity_decoupled")
    empty_final = _request(**_parameters(triton_enable_empty_final_response=True))
    yield StreamCase("grpc/stream/none", ())
    yield StreamCase("grpc/stream/one", (_request(id="1"),))
    yield StreamCase("grpc/stream/three", tuple(_request(id=str(n)) for n in range(3)))
    yield StreamCase("grpc/stream/bad_then_good", (bad, _request(id="2")))
    yield StreamCase("grpc/stream/unknown_model", (unknown, _request(id="2")))
    yield StreamCase("grpc/stream/bad_with_id", (_request([{**TWO, "shape": [1, 2]}], id="b"),))
    yield StreamCase("grpc/stream/empty_final", (empty_final,))
    yield StreamCase("grpc/stream/decoupled", (decoupled,))
    yield StreamCase("grpc/stream/decoupled_empty_final", (_request(model="identity_decoupled", **_parameters(triton_enable_empty_final_response=True)),))
    yield StreamCase("grpc/stream/error_as_status", (bad, _request(id="2")), (("triton_grpc_error", "true"),))
    yield StreamCase("grpc/stream/unknown_model_as_status", (unknown,), (("triton_grpc_error", "true"),))
    yield StreamCase("grpc/stream/good_as_status", (_request(id="1"),), (("triton_grpc_error", "true"),))


def killers():
    """Shapes whose size in bytes does not fit 64 bits."""
    yield _infer("shape_huge", [{**TWO, "shape": [1 << 62]}])
    yield _infer("shape_huge_contents", [_contents("fp32_contents", [1], shape=[1 << 62])], ())
    yield _infer("shape_overflow", [{**TWO, "shape": [1 << 32, 1 << 32]}], model="identity_batched")
    yield _infer("shape_max_int64", [{**TWO, "shape": [(1 << 63) - 1]}])
    yield _infer("shape_wraps_to_zero", [{**TWO, "shape": [1 << 62]}], (b"",))
    yield _infer("shape_wraps_to_match", [{**TWO, "shape": [(1 << 62) + 2]}])


def loading():
    """In order: each request builds on what the earlier ones left loaded."""

    def load(name, model, **parameters):
        kinds = {bool: "bool_param", str: "string_param", bytes: "bytes_param", int: "int64_param"}
        message = pb.RepositoryModelLoadRequest(model_name=model)
        for key, value in parameters.items():
            setattr(message.parameters[key], kinds[type(value)], value)
        return GrpcCase(f"explicit/grpc/{name}", "RepositoryModelLoad", message, "explicit")

    def http(name, path, body=b""):
        return HttpCase(f"explicit/http/{name}", path, "POST", body, (), "explicit")

    yield _call("index_start", "RepositoryIndex", "explicit")
    yield _call("index_start_ready", "RepositoryIndex", "explicit", ready=True)
    yield _call("metadata_not_loaded", "ModelMetadata", "explicit", name="identity_batched")
    yield _call("ready_not_loaded", "ModelReady", "explicit", name="identity_batched")
    yield GrpcCase("explicit/infer_not_loaded", "ModelInfer", _request(model="identity_batched"), "explicit")
    yield load("load", "identity_batched")
    yield load("load_again", "identity_batched")
    yield load("load_unknown", "no_such")
    yield load("load_empty", "")
    yield load("load_ensemble", "ensemble")
    yield load("load_fixed", "identity_fixed")
    yield load("load_two", "identity_two")
    yield _call("unload_unknown", "RepositoryModelUnload", "explicit", model_name="no_such")
    yield _call("unload_not_loaded", "RepositoryModelUnload", "explicit", model_name="identity_labels")
    yield _call("unload_dependency", "RepositoryModelUnload", "explicit", model_name="identity_batched")
    yield _call("index_after_unload", "RepositoryIndex", "explicit", ready=True)
    yield load("load_back", "identity_batched")
    config = {"backend": "identity", "max_batch_size": 2, "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}]}
    yield load("load_override", "identity", config=json.dumps(config))
    yield _call("config_after_override", "ModelConfig", "explicit", name="identity")
    yield load("load_override_bad_json", "identity", config="{")
    yield load("load_override_unknown_field", "identity", config=json.dumps({**config, "no_such": 1}))
    yield load("load_override_bad", "identity", config=json.dumps({**config, "max_batch_size": -1}))
    yield load("load_override_not_text", "identity", config=1)
    yield load("load_unknown_parameter", "identity", no_such="x")
    message = pb.RepositoryModelLoadRequest(model_name="identity_scalar")
    message.parameters["file:1/model.bin"].bytes_param = b"x"
    yield GrpcCase("explicit/grpc/load_file_without_config", "RepositoryModelLoad", message, "explicit")
    yield http("load", "/v2/repository/models/identity_labels/load")
    yield http("load_empty_object", "/v2/repository/models/identity_labels/load", b"{}")
    yield http("load_unknown", "/v2/repository/models/no_such/load")
    yield http("load_bad_json", "/v2/repository/models/identity_labels/load", b"{")
    yield http("load_unknown_parameter", "/v2/repository/models/identity_labels/load", b'{"parameters":{"no_such":"x"}}')
    yield http("load_config_object", "/v2/repository/models/identity_labels/load", b'{"parameters":{"config":{}}}')
    yield http("load_file_not_base64", "/v2/repository/models/identity_labels/load", json.dumps({"parameters": {"config": json.dumps(config), "file:1/m": "!!"}}).encode())
    yield http("load_named_repository", "/v2/repository/other/models/identity_labels/load")
    yield http("unload", "/v2/repository/models/identity_labels/unload")
    yield http("unload_again", "/v2/repository/models/identity_labels/unload")
    yield http("unload_unknown", "/v2/repository/models/no_such/unload")
    yield http("unload_dependents", "/v2/repository/models/ensemble/unload", b'{"parameters":{"unload_dependents":true}}')
    yield http("unload_dependents_text", "/v2/repository/models/ensemble/unload", b'{"parameters":{"unload_dependents":"x"}}')
    yield load("load_back_again", "identity_batched")
    for model in BROKEN:
        yield load(f"load_{model}", model)
    yield http("load_bad_over_http", "/v2/repository/models/bad_no_version/load")
    yield _call("index_end", "RepositoryIndex", "explicit")


def cases():
    """Those that need no set-up of their own, in the order in which they are sent."""
    for group in (_metadata, _good, _bad, _streams):
        yield from group()
