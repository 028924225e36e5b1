"""The model repository of the tests: identity models, whose answers are known, and small ONNX models."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from . import onnx_file

# Triton's name of each datatype, what the configuration calls it, and what numpy does.
TYPES = {
    "BOOL": ("BOOL", np.bool_),
    "UINT8": ("UINT8", np.uint8),
    "UINT16": ("UINT16", np.uint16),
    "UINT32": ("UINT32", np.uint32),
    "UINT64": ("UINT64", np.uint64),
    "INT8": ("INT8", np.int8),
    "INT16": ("INT16", np.int16),
    "INT32": ("INT32", np.int32),
    "INT64": ("INT64", np.int64),
    "FP16": ("FP16", np.float16),
    "BF16": ("BF16", ml_dtypes.bfloat16),
    "FP32": ("FP32", np.float32),
    "FP64": ("FP64", np.float64),
    "BYTES": ("STRING", np.object_),
}


@dataclass
class Model:
    """A folder of a model repository."""

    config: str | None
    # What model.onnx holds, by version; empty for models that have no file.
    versions: dict[int, bytes] = field(default_factory=lambda: {1: b""})
    labels: list[str] = field(default_factory=list)


def identity(options: str = "", datatype: str = "FP32", dims: str = "-1", output: str = "") -> str:
    """The configuration of an identity model with one input and one output."""
    tensor = f"data_type: TYPE_{datatype} dims: [ {dims} ]"
    return (
        f'backend: "identity"\n{options}\n'
        f'input [{{ name: "INPUT0" {tensor} }}]\noutput [{{ name: "OUTPUT0" {tensor} {output} }}]\n'
    )


# Gives its input back, one element a response.
REPEAT = """
backend: "repeat"
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""


def sequence(strategy: str, flags: str = "int32_false_true: [ 0, 1 ]", flag: str = "INT32", corrid: str = "UINT64") -> str:
    """The configuration of an identity model that also gives back what it is told of its sequence."""
    kinds = {"1": "START", "2": "READY", "3": "END"}
    controls = ", ".join(
        f'{{ name: "INPUT{index}" control [{{ kind: CONTROL_SEQUENCE_{kind} {flags} }}] }}'
        for index, kind in kinds.items()
    )
    outputs = ", ".join(
        f'{{ name: "OUTPUT{index}" data_type: TYPE_{datatype} dims: [ 1 ] }}'
        for index, datatype in {"0": "FP32", "1": flag, "2": flag, "3": flag, "4": corrid}.items()
    )
    return f"""
backend: "identity"
max_batch_size: 4
sequence_batching {{
  max_sequence_idle_microseconds: 1000000
  {strategy}
  control_input [
    {controls},
    {{ name: "INPUT4" control [{{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{corrid} }}] }}
  ]
}}
input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] }}]
output [ {outputs} ]
"""


def sequence_models() -> dict[str, Model]:
    """Models of sequences, with controls of every type."""
    return {
        "sequence_direct": Model(sequence("direct { }")),
        "sequence_oldest": Model(sequence("oldest { max_candidate_sequences: 3 }")),
        "sequence_fp32": Model(sequence("direct { }", "fp32_false_true: [ -1, 0.5 ]", "FP32", "INT32")),
        "sequence_bool": Model(sequence("direct { }", "bool_false_true: [ true, false ]", "BOOL", "UINT32")),
        "sequence_text": Model(sequence("oldest { }", corrid="STRING")),
        "sequence_int64": Model(sequence("direct { }", corrid="INT64")),
    }


def batched(delay_us: int = 0, size: int = 8) -> str:
    """The options of a dynamically batched model."""
    return f"max_batch_size: {size} dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}"


def identity_models() -> dict[str, Model]:
    """Models that need no framework."""
    two = "".join(
        f'{kind} [ {{ name: "{name}0" data_type: TYPE_FP32 dims: [ -1 ] }},'
        f' {{ name: "{name}1" data_type: TYPE_INT32 dims: [ 2 ] }} ]\n'
        for kind, name in (("input", "INPUT"), ("output", "OUTPUT"))
    )
    found = {
        "two": Model(f'backend: "identity" max_batch_size: 8\n{two}'),
        "gather": Model(identity(batched(20_000, 64))),
        "second": Model(identity(batched(1_000_000, 64))),
        "patient": Model(identity(batched(60_000_000, 64))),
        "versions": Model(
            identity("version_policy { specific { versions: [ 1, 3 ] } }"),
            {1: b"", 2: b"", 3: b""},
        ),
        "latest": Model(identity(), {1: b"", 2: b""}),
        "repeat": Model(REPEAT),
        "labels": Model(
            identity("max_batch_size: 4", dims="3", output='label_filename: "labels.txt"'),
            labels=["ant", "bee", "cat"],
        ),
    }
    for name, (config_type, _) in TYPES.items():
        found[name.lower()] = Model(identity("", config_type))
        found[f"{name.lower()}_batched"] = Model(identity(batched(), config_type))
    return found


def onnx_models() -> dict[str, Model]:
    """Models for the ONNX Runtime back end, most of them without a configuration."""
    return {
        "mlp": Model(None, {1: onnx_file.mlp()}),
        "relu": Model(None, {1: onnx_file.relu()}),
        "onnx_strings": Model(None, {1: onnx_file.strings()}),
        "mlp_versions": Model(
            "version_policy { all { } }", {1: onnx_file.mlp(1), 2: onnx_file.mlp(2)}
        ),
        "mlp_labels": Model(
            'platform: "onnxruntime_onnx" max_batch_size: 4\n'
            'input [{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }]\n'
            'output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }]\n',
            {1: onnx_file.mlp()},
            ["ant", "bee", "cat"],
        ),
    }


def has_onnxruntime() -> bool:
    """Whether the server finds the ONNX Runtime back end."""
    folder = os.environ.get("NEREID_BACKEND_DIR") or os.path.expanduser("~/.local/share/nereid/backends")
    return (pathlib.Path(folder) / "onnxruntime").is_dir()


def all_models() -> dict[str, Model]:
    """What the shared servers serve."""
    return {**identity_models(), **sequence_models(), **(onnx_models() if has_onnxruntime() else {})}


def write(folder: pathlib.Path, models: dict[str, Model]) -> pathlib.Path:
    """Writes a model repository."""
    for name, model in models.items():
        for version, content in model.versions.items():
            (folder / name / str(version)).mkdir(parents=True)
            if content:
                (folder / name / str(version) / "model.onnx").write_bytes(content)
        if model.config is not None:
            (folder / name / "config.pbtxt").write_text(model.config)
        if model.labels:
            (folder / name / "labels.txt").write_text("\n".join(model.labels) + "\n")
    return folder
