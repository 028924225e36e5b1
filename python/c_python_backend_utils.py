"""The names that Triton's native module has, for those who import it directly."""

from nereid_stub.errors import TritonError, TritonModelException
from nereid_stub.native import InferenceRequest, InferenceResponse, Tensor
from nereid_stub.requests import (
    InferenceResponseSender,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
    ResponseIterator,
)
from nereid_stub.services import (
    Logger,
    Metric,
    MetricFamily,
    MetricKind,
    SharedMemory,
    is_model_ready,
    load_model,
    unload_model,
)

TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = MemoryType
COUNTER, GAUGE, HISTOGRAM = MetricKind
shared_memory = SharedMemory()

# What a model has by importing `triton_python_backend_utils`; the others are here only, as in the real module.
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
