"""The names that Triton's native module has, for those who import it directly."""

from nereid_stub.errors import TritonError, TritonModelException
from nereid_stub.requests import (
    MEMORY_CPU as TRITONSERVER_MEMORY_CPU,
)
from nereid_stub.requests import (
    MEMORY_GPU as TRITONSERVER_MEMORY_GPU,
)
from nereid_stub.requests import (
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    PreferredMemory,
    ResponseIterator,
)
from nereid_stub.services import Logger, Metric, MetricFamily, is_model_ready, load_model, unload_model
from nereid_stub.tensor import Tensor

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "Metric",
    "MetricFamily",
    "PreferredMemory",
    "ResponseIterator",
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "is_model_ready",
    "load_model",
    "unload_model",
]

# Messages and pickles name these as Triton's users know them.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
