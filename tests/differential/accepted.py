"""Where the server under test may answer otherwise than the real Triton, case by case, and why.

Everything here is a difference that we want and that `docs/differences.md` tells the user of. A case that is
listed and yet answers alike is reported too, so that the list cannot outlive its reasons.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Difference:
    """Why a case may differ, and how far: without a status in every way, with one in nothing else."""

    reason: str
    status: int | None = None


CRASH = Difference("the real server ends at this request; ours refuses it and lives on")
OVERFLOW = Difference("the real server multiplies the shape without a check for overflow")
WRAP = Difference("the real server silently keeps the low bits of a number that does not fit its type")
NOT_JSON = Difference("the real server writes a number that JSON has no form for")
CLIENT_ERROR = Difference("the real server calls what the client got wrong an internal error", 400)

_WHERE = {
    CRASH: """
        http/infer/classification_bytes http/infer/shape_huge http/infer/shape_max_int64
    """,
    OVERFLOW: """
        http/infer/shape_overflow http/infer/shape_huge_binary http/infer/shape_wraps_to_zero
        http/infer/shape_wraps_to_match
        grpc/infer/shape_huge grpc/infer/shape_huge_contents grpc/infer/shape_overflow
        grpc/infer/shape_max_int64 grpc/infer/shape_wraps_to_zero grpc/infer/shape_wraps_to_match
    """,
    WRAP: """
        http/infer/value_uint8_over http/infer/value_int8_over http/infer/value_int16_over
        http/infer/value_int32_over
        grpc/infer/contents_UINT8_over grpc/infer/contents_UINT16_over
        grpc/infer/contents_INT8_over grpc/infer/contents_INT16_over
    """,
    NOT_JSON: "http/infer/value_fp32_over",
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
        http/infer/shape_over_int64 http/infer/shape_batch_negative http/infer/data_null
        http/infer/data_number http/infer/data_text http/infer/data_object http/infer/data_too_few
        http/infer/data_too_many http/infer/data_empty http/infer/binary_size_negative
        http/infer/binary_size_text http/infer/header_length_too_small
        http/infer/header_length_trailing_text http/infer/classification_negative
        http/infer/classification_text http/generate/text_for_float http/generate/bad_json
        http/generate/empty http/generate/bytes_number http/generate/bytes_bool
        http/generate/bytes_object http/generate/bytes_null http/shm/register_bad_json
        http/shm/register_empty http/trace/set_bad_json http/trace/set_empty
        http/logging/set_bad_type http/logging/set_bad_level http/logging/set_level_negative
        http/logging/set_bad_json http/logging/set_empty http/index/ready_text http/index/bad_json
        explicit/http/load_bad_json explicit/http/load_config_object
    """,
}

ACCEPTED: dict[str, Difference] = {
    case: difference for difference, cases in _WHERE.items() for case in cases.split()
}
