"""What a `model.py` imports: tensors, requests, responses and all that the server does for a model."""

import json
import struct

import numpy as np

from c_python_backend_utils import *  # noqa: F403
from nereid_stub import datatypes as _datatypes
from nereid_stub.config import ModelConfig
from nereid_stub.native import get_input_tensor_by_name, get_output_tensor_by_name
from nereid_stub.strings import deserialize_bytes_tensor, serialize_byte_tensor

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2

TRITON_STRING_TO_NUMPY = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


def _config_by_name(tensors, name):
    return next((tensor for tensor in tensors if tensor["name"] == name), None)


def get_input_config_by_name(model_config, name):
    """What the configuration says of an input, or `None`."""
    return _config_by_name(model_config.get("input", ()), name)


def get_output_config_by_name(model_config, name):
    """What the configuration says of an output, or `None`."""
    return _config_by_name(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config):
    """Whether the model may send any number of responses."""
    return model_config.get("model_transaction_policy", {}).get("decoupled", False)


def triton_to_numpy_type(data_type):
    """NumPy's type for Triton's number; `None` when there is none."""
    if data_type == _datatypes.BF16 or data_type not in _datatypes.NUMPY:
        return None
    return _datatypes.NUMPY[data_type].type


def numpy_to_triton_type(data_type):
    """Triton's number for NumPy's type; `None` when there is none."""
    return _datatypes.of_numpy(np.dtype(data_type))


def triton_string_to_numpy(triton_type_string):
    """NumPy's type for the name that a configuration has for it."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]
