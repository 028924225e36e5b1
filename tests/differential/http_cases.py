"""The HTTP requests of the differential tests that ask a server about itself or tell it something; those that
infer are in `http_infer_cases`."""

from __future__ import annotations

import json

from . import http_infer_cases
from .cases import HttpCase


def _get(name, path, method="GET", body=b"", headers=()) -> HttpCase:
    return HttpCase(f"http/{name}", path, method, body, tuple(headers))


def _metadata():
    yield _get("server/metadata", "/v2")
    yield _get("server/metadata_slash", "/v2/")
    yield _get("server/live", "/v2/health/live")
    yield _get("server/ready", "/v2/health/ready")
    yield _get("server/ready_slash", "/v2/health/ready/")
    yield _get("server/health_unknown", "/v2/health/other")
    yield _get("server/root", "/")
    yield _get("server/v1", "/v1")
    yield _get("server/unknown", "/v2/no/such")
    yield _get("server/query", "/v2/health/ready?x=1")
    yield _get("server/post_metadata", "/v2", "POST")
    yield _get("server/post_ready", "/v2/health/ready", "POST")
    yield _get("server/head_ready", "/v2/health/ready", "HEAD")
    yield _get("server/put_ready", "/v2/health/ready", "PUT")
    yield _get("server/delete_model", "/v2/models/identity", "DELETE")
    yield _get("server/options", "/v2/health/ready", "OPTIONS")
    yield _get("model/get_infer", "/v2/models/identity/infer")
    yield _get("model/post_metadata", "/v2/models/identity", "POST")
    yield _get("model/models", "/v2/models")
    yield _get("model/models_slash", "/v2/models/")
    yield _get("model/unknown_verb", "/v2/models/identity/no_such")
    yield _get("model/escaped_name", "/v2/models/%69dentity")
    yield _get("model/trailing_slash", "/v2/models/identity/")
    for model in (
        "identity identity_batched identity_fixed identity_two identity_types identity_string identity_labels identity_reshape "
        "identity_scalar identity_optional identity_versions identity_latest identity_decoupled "
        "identity_sequence identity_priority identity_whole identity_whole_sequence ensemble no_such"
    ).split():
        yield _get(f"model/metadata_{model}", f"/v2/models/{model}")
        yield _get(f"model/config_{model}", f"/v2/models/{model}/config")
        yield _get(f"model/ready_{model}", f"/v2/models/{model}/ready")
    for name, version in (("known", "1"), ("missing", "9"), ("text", "abc"), ("zero", "0"), ("negative", "-1"), ("over", "99999999999999999999")):
        for verb in ("", "/ready", "/config", "/stats"):
            yield _get(f"model/version_{name}{verb.replace('/', '_')}", f"/v2/models/identity/versions/{version}{verb}")
    yield _get("model/stats_no_such", "/v2/models/no_such/stats")
    yield _get("model/version_list", "/v2/models/identity/versions")
    yield _get("model/stats_fresh", "/v2/models/identity_scalar/versions/1/stats")


def _generate():
    body = b'{"INPUT0": 1.5}'
    yield _get("generate/good", "/v2/models/identity/generate", "POST", body)
    yield _get("generate/list", "/v2/models/identity/generate", "POST", b'{"INPUT0": [1, 2]}')
    yield _get("generate/id", "/v2/models/identity/generate", "POST", b'{"id": "x", "INPUT0": 1}')
    yield _get("generate/unknown_input", "/v2/models/identity/generate", "POST", b'{"NONE": 1}')
    yield _get("generate/parameter", "/v2/models/identity/generate", "POST", b'{"INPUT0": 1, "temperature": 1}')
    yield _get("generate/parameters", "/v2/models/identity/generate", "POST", b'{"INPUT0": 1, "parameters": {"a": 1}}')
    yield _get("generate/text_for_float", "/v2/models/identity/generate", "POST", b'{"INPUT0": "x"}')
    yield _get("generate/bad_json", "/v2/models/identity/generate", "POST", b"{")
    yield _get("generate/empty", "/v2/models/identity/generate", "POST", b"")
    yield _get("generate/no_such", "/v2/models/no_such/generate", "POST", body)
    yield _get("generate/get", "/v2/models/identity/generate")
    yield _get("generate/batched", "/v2/models/identity_batched/generate", "POST", body)
    yield _get("generate/decoupled", "/v2/models/identity_decoupled/generate", "POST", body)
    yield _get("generate/stream", "/v2/models/identity/generate_stream", "POST", body)
    yield _get("generate/stream_decoupled", "/v2/models/identity_decoupled/generate_stream", "POST", body)
    yield _get("generate/stream_bad", "/v2/models/identity/generate_stream", "POST", b'{"NONE": 1}')
    for name, model, sent in (
        ("none", "identity", '{"INPUT0": []}'),
        ("nested", "identity", '{"INPUT0": [[1, 2], [3, 4]]}'),
        ("float_null", "identity", '{"INPUT0": null}'),
        ("fixed", "identity_fixed", '{"INPUT0": [1, 2, 3, 4, 5, 6]}'),
        ("fixed_scalar", "identity_fixed", '{"INPUT0": 1}'),
        ("fixed_nested", "identity_fixed", '{"INPUT0": [[1, 2, 3], [4, 5, 6]]}'),
        ("two", "identity_two", '{"INPUT0": [1, 2], "INPUT1": [3, 4]}'),
        ("two_scalar", "identity_two", '{"INPUT0": [1, 2], "INPUT1": 3}'),
        ("two_fraction", "identity_two", '{"INPUT0": 1, "INPUT1": [3, 4.5]}'),
        ("fp16", "identity_types", '{"INPUT_FP16": 1}'),
        ("bool_number", "identity_types", '{"INPUT_BOOL": 1}'),
        ("scalar", "identity_scalar", '{"INPUT0": 2}'),
        ("reshape", "identity_reshape", '{"INPUT0": [1, 2, 3, 4]}'),
        ("strings", "identity_string", '{"INPUT0": ["a", "b"]}'),
        ("strings_mixed", "identity_string", '{"INPUT0": ["a", 1]}'),
        ("id_number", "identity", '{"INPUT0": 1, "id": 7}'),
        ("id_in_error", "identity", '{"id": "q", "NONE": 1}'),
        ("parameter_kinds", "identity", '{"INPUT0": 1, "p": "s", "q": 1.5, "r": true}'),
        ("parameter_null", "identity", '{"INPUT0": 1, "p": null}'),
        ("parameter_list", "identity", '{"INPUT0": 1, "p": [1]}'),
        ("parameter_object", "identity", '{"INPUT0": 1, "p": {"x": 1}}'),
        ("parameter_reserved", "identity", '{"INPUT0": 1, "priority": "x", "triton_x": 5}'),
        ("parameters_number", "identity", '{"INPUT0": 1, "parameters": 3}'),
        ("parameters_input", "identity", '{"parameters": {"INPUT0": 1}}'),
        ("parameters_input_again", "identity", '{"INPUT0": 1, "parameters": {"INPUT0": 5}}'),
        ("parameters_list", "identity", '{"INPUT0": 1, "parameters": {"p": [1]}}'),
        ("array", "identity", "[1]"),
        ("no_members", "identity", "{}"),
        ("trailing", "identity", '{"INPUT0": 1} x'),
        ("twice", "identity", '{"INPUT0": 1, "INPUT0": 2}'),
        ("labels", "identity_labels", '{"INPUT0": [1, 2, 3, 4]}'),
    ):
        yield _get(f"generate/{name}", f"/v2/models/{model}/generate", "POST", sent.encode())
    yield _get("generate/version", "/v2/models/identity_versions/versions/1/generate", "POST", body)
    yield _get("generate/version_unknown", "/v2/models/identity_versions/versions/7/generate", "POST", body)
    yield _get("generate/stream_text", "/v2/models/identity/generate_stream", "POST", b'{"INPUT0": "x"}')
    for name, value in (("text", b'"hi"'), ("number", b"7"), ("list", b'["hi"]'), ("bool", b"true"), ("object", b'{"a": 1}'), ("null", b"null")):
        yield _get(f"generate/bytes_{name}", "/v2/models/identity_string/generate", "POST", b'{"INPUT0": ' + value + b"}")


def _extensions():
    yield _get("shm/status_empty", "/v2/systemsharedmemory/status")
    yield _get("shm/status_unknown", "/v2/systemsharedmemory/region/no_such/status")
    yield _get("shm/register_no_key", "/v2/systemsharedmemory/region/r/register", "POST", b'{"byte_size":8}')
    yield _get("shm/register_no_size", "/v2/systemsharedmemory/region/r/register", "POST", b'{"key":"/no_such_nereid"}')
    yield _get("shm/register_missing_key", "/v2/systemsharedmemory/region/r/register", "POST", b'{"key":"/no_such_nereid","byte_size":8}')
    yield _get("shm/register_bad_json", "/v2/systemsharedmemory/region/r/register", "POST", b"{")
    yield _get("shm/register_empty", "/v2/systemsharedmemory/region/r/register", "POST")
    yield _get("shm/register_no_region", "/v2/systemsharedmemory/register", "POST", b'{"key":"/no_such_nereid","byte_size":8}')
    yield _get("shm/unregister_unknown", "/v2/systemsharedmemory/region/no_such/unregister", "POST")
    yield _get("shm/unregister_all", "/v2/systemsharedmemory/unregister", "POST")
    yield _get("shm/get_register", "/v2/systemsharedmemory/region/r/register")
    yield _get("shm/post_status", "/v2/systemsharedmemory/status", "POST")
    yield _get("cuda_shm/status_empty", "/v2/cudasharedmemory/status")
    yield _get("cuda_shm/status_unknown", "/v2/cudasharedmemory/region/no_such/status")
    yield _get("cuda_shm/register", "/v2/cudasharedmemory/region/r/register", "POST", json.dumps({"raw_handle": {"b64": "A" * 88}, "device_id": 0, "byte_size": 8}).encode())
    yield _get("cuda_shm/register_empty", "/v2/cudasharedmemory/region/r/register", "POST", b"{}")
    yield _get("cuda_shm/unregister_unknown", "/v2/cudasharedmemory/region/no_such/unregister", "POST")
    yield _get("cuda_shm/unregister_all", "/v2/cudasharedmemory/unregister", "POST")
    yield _get("trace/get", "/v2/trace/setting")
    yield _get("trace/get_model", "/v2/models/identity/trace/setting")
    yield _get("trace/get_unknown_model", "/v2/models/no_such/trace/setting")
    yield _get("trace/set", "/v2/trace/setting", "POST", b'{"trace_rate":"1000","log_frequency":"5"}')
    yield _get("trace/set_model", "/v2/models/identity/trace/setting", "POST", b'{"trace_rate":"7"}')
    yield _get("trace/get_model_after", "/v2/models/identity/trace/setting")
    yield _get("trace/clear_model", "/v2/models/identity/trace/setting", "POST", b'{"trace_rate":null}')
    yield _get("trace/set_unknown_model", "/v2/models/no_such/trace/setting", "POST", b'{"trace_rate":"7"}')
    yield _get("trace/set_unknown", "/v2/trace/setting", "POST", b'{"no_such":"1"}')
    yield _get("trace/set_bad_level", "/v2/trace/setting", "POST", b'{"trace_level":["NONE"]}')
    yield _get("trace/set_bad_rate", "/v2/trace/setting", "POST", b'{"trace_rate":"x"}')
    yield _get("trace/set_rate_negative", "/v2/trace/setting", "POST", b'{"trace_rate":"-1"}')
    yield _get("trace/set_rate_back", "/v2/trace/setting", "POST", b'{"trace_rate":null}')
    yield _get("trace/set_rate_over", "/v2/trace/setting", "POST", b'{"trace_rate":"99999999999"}')
    yield _get("trace/set_count_bad", "/v2/trace/setting", "POST", b'{"trace_count":"-2"}')
    yield _get("trace/set_file", "/v2/trace/setting", "POST", b'{"trace_file":"x.json"}')
    yield _get("trace/set_mode", "/v2/trace/setting", "POST", b'{"trace_mode":"triton"}')
    for name, sent in (
        ("level_text", b'{"trace_level":"TIMESTAMPS"}'),
        ("level_two", b'{"trace_level":["TIMESTAMPS","OFF"]}'),
        ("level_none", b'{"trace_level":[]}'),
        ("level_number", b'{"trace_level":[1]}'),
        ("level_no_file", b'{"trace_level":["TIMESTAMPS"]}'),
        ("rate_number", b'{"trace_rate":5}'),
        ("rate_list", b'{"trace_rate":["5"]}'),
        ("rate_empty", b'{"trace_rate":""}'),
        ("count_text", b'{"trace_count":"x"}'),
        ("count_over", b'{"trace_count":"99999999999"}'),
        ("count", b'{"trace_count":"3"}'),
        ("count_null", b'{"trace_count":null}'),
        ("frequency_text", b'{"log_frequency":"x"}'),
        ("mode_other", b'{"trace_mode":"opentelemetry"}'),
        ("file_null", b'{"trace_file":null}'),
    ):
        yield _get(f"trace/set_{name}", "/v2/trace/setting", "POST", sent)
    yield _get("trace/set_bad_json", "/v2/trace/setting", "POST", b"{")
    yield _get("trace/set_empty", "/v2/trace/setting", "POST")
    yield _get("trace/level_timestamps_off", "/v2/trace/setting", "POST", b'{"trace_level":["OFF"]}')
    yield _get("trace/restore", "/v2/trace/setting", "POST", b'{"trace_rate":null,"log_frequency":null}')
    yield _get("logging/get", "/v2/logging")
    yield _get("logging/set", "/v2/logging", "POST", b'{"log_verbose_level":1}')
    yield _get("logging/set_back", "/v2/logging", "POST", b'{"log_verbose_level":0}')
    yield _get("logging/set_format", "/v2/logging", "POST", b'{"log_format":"ISO8601"}')
    yield _get("logging/set_format_back", "/v2/logging", "POST", b'{"log_format":"default"}')
    yield _get("logging/set_unknown", "/v2/logging", "POST", b'{"no_such":1}')
    yield _get("logging/set_bad_type", "/v2/logging", "POST", b'{"log_info":1}')
    yield _get("logging/set_bad_level", "/v2/logging", "POST", b'{"log_verbose_level":"1"}')
    yield _get("logging/set_level_negative", "/v2/logging", "POST", b'{"log_verbose_level":-1}')
    yield _get("logging/set_bad_format", "/v2/logging", "POST", b'{"log_format":"x"}')
    yield _get("logging/set_file", "/v2/logging", "POST", b'{"log_file":"/x/y/z.log"}')
    yield _get("logging/set_format_number", "/v2/logging", "POST", b'{"log_format":3}')
    yield _get("logging/set_level_fraction", "/v2/logging", "POST", b'{"log_verbose_level":1.5}')
    yield _get("logging/set_file_empty", "/v2/logging", "POST", b'{"log_file":""}')
    yield _get("logging/set_bad_json", "/v2/logging", "POST", b"{")
    yield _get("logging/set_empty", "/v2/logging", "POST")
    yield _get("index/all", "/v2/repository/index", "POST")
    yield _get("index/ready", "/v2/repository/index", "POST", b'{"ready":true}')
    yield _get("index/ready_false", "/v2/repository/index", "POST", b'{"ready":false}')
    yield _get("index/ready_text", "/v2/repository/index", "POST", b'{"ready":"x"}')
    yield _get("index/bad_json", "/v2/repository/index", "POST", b"{")
    yield _get("index/get", "/v2/repository/index")
    yield _get("index/named", "/v2/repository/other/index", "POST")
    yield _get("load/not_allowed", "/v2/repository/models/identity/load", "POST")
    yield _get("load/not_allowed_unknown", "/v2/repository/models/no_such/load", "POST")
    yield _get("unload/not_allowed", "/v2/repository/models/identity/unload", "POST")


def closing():
    """What the requests before have left in the counters."""
    for model in ("identity", "identity_batched", "identity_two", "identity_sequence", "identity_decoupled", "ensemble"):
        yield _get(f"stats/{model}", f"/v2/models/{model}/stats")
    yield HttpCase("http/stats/all", "/v2/models/stats", setup="explicit")
    yield HttpCase("metrics/page", "/metrics", service="metrics")
    yield HttpCase("metrics/slash", "/metrics/", service="metrics")
    yield HttpCase("metrics/unknown", "/other", service="metrics")
    yield HttpCase("metrics/post", "/metrics", "POST", service="metrics")


def cases():
    """All but the closing ones, in the order in which they are sent."""
    yield from _metadata()
    yield from http_infer_cases.cases()
    yield from _generate()
    yield from _extensions()
