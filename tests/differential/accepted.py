"""Where the server under test may answer otherwise than the real Triton, case by case, and why.

Everything here is a difference that we want and that `docs/src/differences.md` tells the user of. A case that is
listed and yet answers alike is reported too, so that the list cannot outlive its reasons.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Difference:
    """Why a case may differ, by which words at the beginning of an entry `docs/src/differences.md` tells of it, and
    how far: in its status only, by more words at its end only, or else in every way."""

    reason: str
    told: tuple[str, ...]
    status: int | None = None
    says_more: bool = False


CRASH = Difference(
    "the real server ends at this request; ours refuses it and lives on",
    ("A shape too large to multiply", "Classification of strings"),
)
OVERFLOW = Difference(
    "the real server multiplies the shape without a check for overflow",
    ("A shape too large to multiply",),
)
WRAP = Difference(
    "the real server silently keeps the low bits of a number that does not fit its type",
    ("An integer that does not fit its type", "Numbers must be numbers"),
)
NOT_JSON = Difference(
    "the real server writes a number that JSON has no form for", ("A number too large for FP32",)
)
LENIENT = Difference(
    "the real server takes half of a malformed request for a whole one",
    ("Half of a malformed request", "A shape with a 0 and yet data", "Files that come with a load", "A parameter of the wrong type"),
)
UNCHECKED = Difference(
    "the real server hands on strings whose length points past their end",
    ("A string that is longer than what is left",),
)
ZERO_ROWS = Difference(
    "the real server forgets the batch dimension when it is zero, and asks for another size",
    ("A batch of no rows",),
)
NEGATIVE = Difference("the real server multiplies negative dimensions", ("A negative dimension",))
UNORDERED = Difference(
    "the real server names inputs in the order of a hash table, and drops a bracket",
    ("Inputs are named in the order of the request",),
)
INCOMPLETE = Difference(
    "the real server runs a model without an input that it needs, as many are optional",
    ("An input that the model needs",),
)
VAGUE = Difference("the real server does not say what it could not read; ours does", ("Errors say more",))
REFUSED = Difference(
    "the real server refuses a kind of parameter that its protocol has", ("Parameters of the kind `uint64_param`",)
)
ESCAPED = Difference(
    "the real server does not decode names in paths, though its own client encodes them", ("Names in paths",)
)
NOT_FOUND = Difference(
    "the real server's metrics port answers every path with an empty page", ("Other paths of the metrics port",)
)
NESTED = Difference("ours bounds how deep JSON may nest", ("JSON nests",))
RECOUNTED = Difference(
    "the counts tell of the cases above, which one server answers and the other refuses",
    ("What the client got wrong is 400",),
)
NO_REASON = Difference(
    "the real server tells its log alone why a model was not polled", ("Why a load failed",), says_more=True
)
UNSOUND = Difference(
    "the real server loads a model whose tensors cannot be told apart or filled",
    ("A configuration with two inputs or two outputs of one name", "A configuration that the back end `identity` cannot serve"),
)
LISTED = Difference(
    "the index tells of the cases above, and ours also lists models without versions", ("The index",)
)
NEWER = Difference("the recorded release came before what ours follows", ("After 2.51",))
CLIENT_ERROR = Difference(
    "the real server calls what the client got wrong an internal error", ("What the client got wrong is 400",), 400
)

_WHERE = {
    CRASH: """
        http/infer/classification_bytes http/infer/shape_huge http/infer/shape_max_int64
    """,
    OVERFLOW: """
        http/infer/shape_overflow http/infer/shape_huge_binary
        http/infer/shape_wraps_to_match http/infer/shape_over_int64
        grpc/infer/shape_huge grpc/infer/shape_huge_contents grpc/infer/shape_overflow
        grpc/infer/shape_max_int64 grpc/infer/shape_wraps_to_zero grpc/infer/shape_wraps_to_match
    """,
    WRAP: """
        http/infer/value_uint8_over http/infer/value_int8_over http/infer/value_int16_over
        http/infer/value_int32_over
        http/trace/set_rate_negative
        grpc/infer/contents_UINT8_over grpc/infer/contents_UINT16_over
        grpc/infer/contents_INT8_over grpc/infer/contents_INT16_over
    """,
    NEWER: "http/model/config_ensemble http/infer/output_twice grpc/infer/output_twice",
    NOT_JSON: "http/infer/value_fp32_over",
    LENIENT: """
        http/infer/empty_body http/infer/content_encoding_gzip_plain http/infer/not_utf8
        http/infer/data_for_zero_elements http/infer/binary_without_header
        http/infer/header_length_empty http/infer/header_length_text
        http/infer/header_length_trailing_text
        grpc/infer/version_trailing_text grpc/infer/raw_too_many
        explicit/http/load_file_not_base64 explicit/http/unload_dependents_text
    """,
    UNCHECKED: """
        http/infer/bytes_prefix_over_end http/infer/bytes_prefix_max grpc/infer/bytes_prefix_over_end
    """,
    ZERO_ROWS: "http/infer/good_zero_rows grpc/infer/good_zero_rows",
    NEGATIVE: "grpc/infer/shape_negative_two grpc/infer/shape_product_negative",
    UNORDERED: """
        http/infer/input_extra grpc/infer/input_extra http/infer/batch_differs grpc/infer/batch_differs
    """,
    INCOMPLETE: "http/infer/optional_only grpc/infer/optional_only",
    VAGUE: """
        grpc/infer/not_protobuf grpc/infer/not_utf8_name grpc/infer/datatype_empty
        grpc/infer/datatype_unknown http/infer/header_length_zero explicit/http/load_unknown_parameter
        explicit/grpc/load_bad_unknown_backend
    """,
    REFUSED: "grpc/infer/good_unsigned_parameter",
    ESCAPED: "http/model/escaped_name",
    NOT_FOUND: "metrics/unknown",
    NESTED: "http/infer/deep",
    RECOUNTED: "http/stats/identity",
    NO_REASON: """
        explicit/grpc/load_override_bad_json explicit/grpc/load_override_unknown_field
        explicit/grpc/load_override_bad explicit/grpc/load_file_without_config
        explicit/grpc/load_bad_no_config explicit/grpc/load_bad_empty_config
        explicit/grpc/load_bad_name explicit/grpc/load_bad_no_backend
        explicit/grpc/load_bad_unknown_platform explicit/grpc/load_bad_text_format
        explicit/grpc/load_bad_unknown_field explicit/grpc/load_bad_enum
        explicit/grpc/load_bad_value explicit/grpc/load_bad_max_batch_size
        explicit/grpc/load_bad_preferred_over_max explicit/grpc/load_bad_preferred_zero
        explicit/grpc/load_bad_default_priority explicit/grpc/load_bad_no_default_priority
        explicit/grpc/load_bad_priority_policy explicit/grpc/load_bad_two_schedulers
        explicit/grpc/load_bad_sequence_control explicit/grpc/load_bad_sequence_control_twice
        explicit/grpc/load_bad_sequence_control_values explicit/grpc/load_bad_sequence_corrid
        explicit/grpc/load_bad_cache_decoupled explicit/grpc/load_bad_agent
        explicit/grpc/load_bad_ensemble_no_steps explicit/grpc/load_bad_ensemble_no_scheduling
        explicit/grpc/load_bad_ensemble_no_producer explicit/grpc/load_bad_ensemble_no_output
        explicit/grpc/load_bad_ensemble_two_producers explicit/grpc/load_bad_ensemble_cycle
        explicit/grpc/load_bad_ensemble_instances
    """,
    UNSOUND: """
        explicit/grpc/load_bad_no_input explicit/grpc/load_bad_duplicate_input
        explicit/grpc/load_bad_duplicate_output explicit/grpc/load_bad_sequence_state
    """,
    LISTED: "explicit/index_end",
    CLIENT_ERROR: """
        http/infer/good_accept_gzip_error http/infer/value_uint8_negative
        http/infer/value_int64_over http/infer/value_uint64_over http/infer/value_uint64_negative
        http/infer/value_int32_fraction http/infer/value_int32_text http/infer/value_int32_bool
        http/infer/value_int32_null http/infer/value_int32_object http/infer/value_bool_number
        http/infer/value_bool_text http/infer/value_fp32_text http/infer/value_fp32_bool
        http/infer/value_fp64_text http/infer/value_bytes_number http/infer/not_json
        http/infer/truncated http/infer/trailing_garbage http/infer/trailing_comma http/infer/array
        http/infer/number http/infer/null http/infer/empty_object http/infer/id_number
        http/infer/inputs_missing http/infer/inputs_object http/infer/inputs_null
        http/infer/outputs_object http/infer/outputs_numbers http/infer/output_no_name
        http/infer/output_name_number http/infer/output_binary_not_bool http/infer/parameters_list
        http/infer/parameters_null http/infer/parameter_priority_text
        http/infer/parameter_priority_negative http/infer/parameter_timeout_text
        http/infer/parameter_sequence_id_bool http/infer/parameter_sequence_start_int
        http/infer/parameter_binary_output_int http/infer/input_no_name http/infer/input_name_number
        http/infer/datatype_missing http/infer/datatype_number http/infer/shape_missing
        http/infer/shape_number http/infer/shape_text http/infer/shape_fraction
        http/infer/shape_negative http/infer/shape_negative_two http/infer/shape_product_negative
        http/infer/shape_batch_negative http/infer/data_null
        http/infer/data_number http/infer/data_text http/infer/data_object http/infer/data_too_few
        http/infer/data_too_many http/infer/data_empty http/infer/binary_size_negative
        http/infer/binary_size_text http/infer/header_length_too_small
        http/infer/classification_negative
        http/infer/classification_text http/generate/text_for_float http/generate/bad_json
        http/generate/empty http/generate/bytes_number http/generate/bytes_bool
        http/generate/bytes_object http/generate/bytes_null http/shm/register_bad_json http/shm/register_empty
        http/shm/register_empty http/trace/set_bad_json http/trace/set_empty
        http/logging/set_bad_type http/logging/set_bad_level http/logging/set_level_negative
        http/generate/nested http/generate/float_null http/generate/two_fraction
        http/generate/bool_number http/generate/strings_mixed http/generate/id_number
        http/generate/parameters_number http/generate/array http/generate/trailing
        http/generate/stream_text
        http/trace/set_level_text http/trace/set_level_number http/trace/set_rate_number
        http/trace/set_rate_list http/logging/set_bad_format http/logging/set_format_number
        http/logging/set_level_fraction
        http/logging/set_bad_json http/logging/set_empty http/index/ready_text http/index/bad_json
        explicit/http/load_bad_json explicit/http/load_config_object
    """,
}

ACCEPTED: dict[str, Difference] = {
    case: difference for difference, cases in _WHERE.items() for case in cases.split()
}


def overlooked(expected: dict, got: dict) -> dict:
    """`got` without what every error of ours may have: a true content type, and the methods that are allowed.

    The real server calls some of its JSON bodies plain text and does not say which methods it would take.
    """
    headers = dict(got.get("headers", {}))
    if expected.get("status", 0) < 400 or headers.get("content-type") != "application/json":
        return got
    recorded = expected.get("headers", {})
    if recorded.get("content-type") == "text/plain":
        headers["content-type"] = "text/plain"
    if "allow" not in recorded:
        headers.pop("allow", None)
    return {**got, "headers": headers}
