"""The model repository that both servers of a differential run serve: identity models only, so that every
answer is known and no framework is needed."""

from __future__ import annotations

import pathlib
import shutil

FP32_PAIR = """
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
"""

TYPES = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64 STRING".split()


def _typed_tensors() -> str:
    inputs = ",\n".join(
        f'{{ name: "INPUT_{t}" data_type: TYPE_{t} dims: [ -1 ] optional: true }}' for t in TYPES
    )
    outputs = ",\n".join(f'{{ name: "OUTPUT_{t}" data_type: TYPE_{t} dims: [ -1 ] }}' for t in TYPES)
    return f"input [{inputs}]\noutput [{outputs}]\n"


# Every model that loads: configuration, and the versions it has.
MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "identity": ('backend: "identity"' + FP32_PAIR, (1,)),
    "identity_batched": (
        'backend: "identity" max_batch_size: 8 dynamic_batching { }' + FP32_PAIR,
        (1,),
    ),
    "identity_fixed": (
        """
backend: "identity"
max_batch_size: 4
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 2, 3 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 2, 3 ] }]
""",
        (1,),
    ),
    "identity_two": (
        """
backend: "identity"
max_batch_size: 8
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "INPUT1" data_type: TYPE_INT32 dims: [ 2 ] }
]
output [
  { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 2 ] }
]
""",
        (1,),
    ),
    "identity_types": ('backend: "identity"\n' + _typed_tensors(), (1,)),
    "identity_string": (
        'backend: "identity"' + FP32_PAIR.replace("TYPE_FP32", "TYPE_STRING").replace("-1", "1"),
        (1,),
    ),
    "identity_labels": (
        """
backend: "identity"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" }]
""",
        (1,),
    ),
    "identity_reshape": (
        """
backend: "identity"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }]
""",
        (1,),
    ),
    "identity_scalar": (
        """
backend: "identity"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }]
""",
        (1,),
    ),
    "identity_optional": (
        """
backend: "identity"
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "INPUT1" data_type: TYPE_INT32 dims: [ 2 ] optional: true }
]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
""",
        (1,),
    ),
    "identity_versions": (
        'backend: "identity" version_policy { all { } }' + FP32_PAIR,
        (1, 3),
    ),
    "identity_latest": ('backend: "identity"' + FP32_PAIR, (1, 2)),
    "identity_decoupled": (
        'backend: "identity" model_transaction_policy { decoupled: true }' + FP32_PAIR,
        (1,),
    ),
    "identity_sequence": (
        'backend: "identity" max_batch_size: 4 sequence_batching { max_sequence_idle_microseconds: 5000000 }'
        + FP32_PAIR,
        (1,),
    ),
    "identity_priority": (
        """
backend: "identity"
max_batch_size: 8
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy { timeout_action: REJECT allow_timeout_override: true max_queue_size: 16 }
}
parameters { key: "note" value { string_value: "as written" } }
metric_tags { key: "team" value: "a" }
instance_group [{ count: 2 kind: KIND_CPU }]
"""
        + FP32_PAIR,
        (1,),
    ),
    # What such a model does not use, and is echoed all the same.
    "identity_whole": (
        """
backend: "identity"
max_batch_size: 4
version_policy { specific { versions: [ 1 ] } }
input [{ name: "INPUT0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 2, 2 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 3, 2, 2 ] label_filename: "labels.txt" }]
optimization {
  graph { level: -1 }
  priority: PRIORITY_MIN
  cuda {
    graphs: true
    busy_wait_events: true
    graph_spec [{
      batch_size: 2
      input { key: "INPUT0" value { dim: [ 3, 2, 2 ] } }
      graph_lower_bound { batch_size: 1 input { key: "INPUT0" value { dim: [ 3, 2, 2 ] } } }
    }]
    output_copy_stream: true
  }
  execution_accelerators {
    gpu_execution_accelerator [{ name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } }]
    cpu_execution_accelerator [{ name: "openvino" }]
  }
  input_pinned_memory { enable: false }
  output_pinned_memory { enable: false }
  gather_kernel_buffer_threshold: 5
  eager_batching: true
}
dynamic_batching {
  preferred_batch_size: [ 2 ]
  max_queue_delay_microseconds: 5
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 7 allow_timeout_override: true max_queue_size: 9 }
  priority_queue_policy { key: 1 value { max_queue_size: 3 } }
}
instance_group [{
  name: "own"
  count: 1
  kind: KIND_CPU
  host_policy: "some"
  rate_limiter { resources [{ name: "R" global: true count: 2 }] priority: 3 }
  secondary_devices [{ kind: KIND_NVDLA device_id: 1 }]
}]
default_model_filename: "some.file"
cc_model_filenames { key: "7.5" value: "other.file" }
metric_tags { key: "team" value: "b" }
parameters { key: "note" value { string_value: "kept" } }
model_operations { op_library_filename: [ "some.so" ] }
model_transaction_policy { decoupled: false }
response_cache { enable: false }
model_warmup [{
  name: "zeros"
  batch_size: 1
  count: 2
  inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [ 3, 2, 2 ] zero_data: true } }
}]
""",
        (1,),
    ),
    "identity_whole_sequence": (
        """
backend: "identity"
max_batch_size: 4
sequence_batching {
  oldest {
    max_candidate_sequences: 3
    preferred_batch_size: [ 2, 4 ]
    max_queue_delay_microseconds: 6
    preserve_ordering: true
  }
  max_sequence_idle_microseconds: 7000000
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] }] },
    { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] }] },
    { name: "END" control [{ kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] }] },
    { name: "ID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
  state [{
    input_name: "INPUT1"
    output_name: "OUTPUT1"
    data_type: TYPE_FP32
    dims: [ 2, 3 ]
    initial_state [{ name: "begin" data_type: TYPE_FP32 dims: [ 2, 3 ] zero_data: true }]
    use_same_buffer_for_input_output: true
  }]
}
"""
        + FP32_PAIR,
        (1,),
    ),
    "ensemble": (
        """
platform: "ensemble"
max_batch_size: 8
"""
        + FP32_PAIR
        + """
ensemble_scheduling {
  step [
    {
      model_name: "identity_batched"
      model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      output_map { key: "OUTPUT0" value: "between" }
    },
    {
      model_name: "identity_batched"
      model_version: -1
      input_map { key: "INPUT0" value: "between" }
      output_map { key: "OUTPUT0" value: "OUTPUT0" }
    }
  ]
}
""",
        (1,),
    ),
}

# Models that must not load, each for one reason; served in explicit mode only.
_IN = 'input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
_OUT = 'output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
_ID = 'backend: "identity"\n'


def _ensemble(steps: str, tensors: str = FP32_PAIR) -> str:
    return f'platform: "ensemble"\nmax_batch_size: 8\n{tensors}ensemble_scheduling {{ step [{steps}] }}'


def _step(model: str, source: str, target: str, version: int = -1, key: str = "INPUT0") -> str:
    return (
        f'{{ model_name: "{model}" model_version: {version} '
        f'input_map {{ key: "{key}" value: "{source}" }} '
        f'output_map {{ key: "OUTPUT0" value: "{target}" }} }}'
    )


BROKEN: dict[str, tuple[str | None, tuple[int, ...]]] = {
    "bad_no_version": (_ID + _IN + _OUT, ()),
    "bad_no_config": (None, (1,)),
    "bad_empty_config": ("", (1,)),
    "bad_name": ('name: "other"\n' + _ID + _IN + _OUT, (1,)),
    "bad_no_backend": (_IN + _OUT, (1,)),
    "bad_unknown_backend": ('backend: "no_such"\n' + _IN + _OUT, (1,)),
    "bad_unknown_platform": ('platform: "no_such"\n' + _IN + _OUT, (1,)),
    "bad_text_format": (_ID + "input [{ name: ", (1,)),
    "bad_unknown_field": (_ID + "no_such_field: 1\n" + _IN + _OUT, (1,)),
    "bad_enum": (_ID + _IN.replace("TYPE_FP32", "TYPE_FP33") + _OUT, (1,)),
    "bad_value": (_ID + 'max_batch_size: "x"\n' + _IN + _OUT, (1,)),
    "bad_max_batch_size": (_ID + "max_batch_size: -1\n" + _IN + _OUT, (1,)),
    "bad_no_input": (_ID + _OUT, (1,)),
    "bad_no_output": (_ID + _IN, (1,)),
    "bad_no_data_type": (_ID + 'input [{ name: "INPUT0" dims: [ -1 ] }]\n' + _OUT, (1,)),
    "bad_no_dims": (_ID + 'input [{ name: "INPUT0" data_type: TYPE_FP32 }]\n' + _OUT, (1,)),
    "bad_no_tensor_name": (_ID + "input [{ data_type: TYPE_FP32 dims: [ 1 ] }]\n" + _OUT, (1,)),
    "bad_zero_dim": (_ID + _IN.replace("-1", "0") + _OUT, (1,)),
    "bad_negative_dim": (_ID + _IN.replace("-1", "-2") + _OUT, (1,)),
    "bad_duplicate_input": (_ID + _IN + _IN + _OUT, (1,)),
    "bad_duplicate_output": (_ID + _IN + _OUT + _OUT, (1,)),
    "bad_reshape": (
        _ID
        + 'max_batch_size: 8 input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 3 ] } }]\n'
        + _OUT,
        (1,),
    ),
    "bad_reshape_wildcards": (
        _ID
        + 'max_batch_size: 8 input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1, 2 ] reshape { shape: [ 2 ] } }]\n'
        + _OUT,
        (1,),
    ),
    "bad_reshape_unbatched": (
        _ID + 'input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }]\n' + _OUT,
        (1,),
    ),
    "bad_ragged_unbatched": (
        _ID + _IN.replace("dims: [ -1 ]", "dims: [ -1 ] allow_ragged_batch: true") + _OUT,
        (1,),
    ),
    "bad_format_dims": (
        _ID + _IN.replace("dims: [ -1 ]", "format: FORMAT_NHWC dims: [ -1 ]") + _OUT,
        (1,),
    ),
    "bad_gpu": (_ID + "instance_group [{ kind: KIND_GPU }]\n" + _IN + _OUT, (1,)),
    "bad_gpus_on_cpu": (
        _ID + "instance_group [{ kind: KIND_CPU gpus: [ 0 ] }]\n" + _IN + _OUT,
        (1,),
    ),
    "bad_instance_count": (
        _ID + "instance_group [{ count: -1 kind: KIND_CPU }]\n" + _IN + _OUT,
        (1,),
    ),
    "bad_preferred_over_max": (
        _ID + "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_preferred_zero": (
        _ID + "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 0 ] }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_batching_unbatched": (_ID + "dynamic_batching { }\n" + _IN + _OUT, (1,)),
    "bad_default_priority": (
        _ID
        + "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 3 }\n"
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_no_default_priority": (
        _ID + "max_batch_size: 4 dynamic_batching { priority_levels: 2 }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_priority_policy": (
        _ID
        + "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        + "priority_queue_policy { key: 5 value { max_queue_size: 1 } } }\n"
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_two_schedulers": (
        _ID + "max_batch_size: 4 dynamic_batching { } sequence_batching { }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_sequence_control": (
        _ID
        + 'max_batch_size: 4 sequence_batching { control_input [{ name: "START" control [{ kind: CONTROL_SEQUENCE_START }] }] }\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_sequence_control_twice": (
        _ID
        + 'max_batch_size: 4 sequence_batching { control_input [{ name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ] }] }] }\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_sequence_control_values": (
        _ID
        + 'max_batch_size: 4 sequence_batching { control_input [{ name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0 ] }] }] }\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_sequence_corrid": (
        _ID
        + 'max_batch_size: 4 sequence_batching { control_input [{ name: "C" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 }] }] }\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_sequence_state": (
        _ID
        + 'max_batch_size: 4 sequence_batching { state [{ input_name: "S" output_name: "T" dims: [ 1 ] }] }\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_batch_input": (
        _ID
        + 'max_batch_size: 4 batch_input [{ kind: BATCH_ELEMENT_COUNT target_name: "X" data_type: TYPE_STRING source_input: "INPUT0" }]\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_batch_input_source": (
        _ID
        + 'max_batch_size: 4 batch_input [{ kind: BATCH_ELEMENT_COUNT target_name: "X" data_type: TYPE_INT32 source_input: "NONE" }]\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_version_policy": (_ID + "version_policy { latest { num_versions: 0 } }\n" + _IN + _OUT, (1,)),
    "bad_version_missing": (
        _ID + "version_policy { specific { versions: [ 7 ] } }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_warmup": (
        _ID
        + 'model_warmup [{ name: "w" batch_size: 1 inputs { key: "NONE" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } } }]\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_warmup_shape": (
        _ID
        + 'model_warmup [{ name: "w" batch_size: 1 inputs { key: "INPUT0" value { data_type: TYPE_INT32 dims: [ 2 ] zero_data: true } } }]\n'
        + _IN
        + _OUT,
        (1,),
    ),
    "bad_cache_decoupled": (
        _ID + "response_cache { enable: true } model_transaction_policy { decoupled: true }\n" + _IN + _OUT,
        (1,),
    ),
    "bad_agent": (
        _ID + 'model_repository_agents { agents [{ name: "no_such" }] }\n' + _IN + _OUT,
        (1,),
    ),
    "bad_ensemble_no_steps": (_ensemble(""), (1,)),
    "bad_ensemble_no_scheduling": ('platform: "ensemble"\n' + FP32_PAIR, (1,)),
    "bad_ensemble_unknown_model": (_ensemble(_step("no_such", "INPUT0", "OUTPUT0")), (1,)),
    "bad_ensemble_unknown_version": (
        _ensemble(_step("identity_batched", "INPUT0", "OUTPUT0", version=9)),
        (1,),
    ),
    "bad_ensemble_unknown_input": (
        _ensemble(_step("identity_batched", "INPUT0", "OUTPUT0", key="NONE")),
        (1,),
    ),
    "bad_ensemble_unmapped": (_ensemble(_step("identity_two", "INPUT0", "OUTPUT0")), (1,)),
    "bad_ensemble_no_producer": (
        _ensemble(_step("identity_batched", "nothing", "OUTPUT0")),
        (1,),
    ),
    "bad_ensemble_no_output": (_ensemble(_step("identity_batched", "INPUT0", "other")), (1,)),
    "bad_ensemble_two_producers": (
        _ensemble(
            _step("identity_batched", "INPUT0", "OUTPUT0")
            + ","
            + _step("identity_batched", "INPUT0", "OUTPUT0")
        ),
        (1,),
    ),
    "bad_ensemble_cycle": (
        _ensemble(
            _step("identity_batched", "b", "a")
            + ","
            + _step("identity_batched", "a", "b")
            + ","
            + _step("identity_batched", "INPUT0", "OUTPUT0")
        ),
        (1,),
    ),
    "bad_ensemble_self": (_ensemble(_step("bad_ensemble_self", "INPUT0", "OUTPUT0")), (1,)),
    "bad_ensemble_dims": (_ensemble(_step("identity_fixed", "INPUT0", "OUTPUT0")), (1,)),
    "bad_ensemble_type": (
        _ensemble(
            _step("identity_batched", "INPUT0", "OUTPUT0"),
            FP32_PAIR.replace("TYPE_FP32", "TYPE_INT32"),
        ),
        (1,),
    ),
    "bad_ensemble_batch": (
        _ensemble(_step("identity_batched", "INPUT0", "OUTPUT0")).replace(
            "max_batch_size: 8", "max_batch_size: 16"
        ),
        (1,),
    ),
    "bad_ensemble_instances": (
        _ensemble(_step("identity_batched", "INPUT0", "OUTPUT0")) + "\ninstance_group [{ kind: KIND_CPU }]",
        (1,),
    ),
}


# Models whose answers are kept, served where there is a cache only.
CACHED: dict[str, tuple[str, tuple[int, ...]]] = {
    "cached": (_ID + "response_cache { enable: true }\nmax_batch_size: 8\n" + FP32_PAIR, (1,)),
    "cached_batched": (
        _ID + "response_cache { enable: true }\nmax_batch_size: 8 dynamic_batching { }\n" + FP32_PAIR,
        (1,),
    ),
}


def write(folder: pathlib.Path, broken: bool = False, cached: bool = False) -> pathlib.Path:
    """Writes the repository anew into `folder`, on request with the models that must not load, and with those
    whose answers are kept."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, (config, versions) in {**MODELS, **(BROKEN if broken else {}), **(CACHED if cached else {})}.items():
        model = folder / name
        model.mkdir(parents=True)
        for version in versions:
            (model / str(version)).mkdir()
        if config is not None:
            (model / "config.pbtxt").write_text(config)
    for name in ("identity_labels", "identity_whole"):
        (folder / name / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    return folder
