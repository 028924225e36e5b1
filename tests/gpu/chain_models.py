"""Chains that choose, pad, suppress and give pictures of several sizes, each on a device and on the processors; and
what they are given, right and wrong."""

from __future__ import annotations

import json
import pathlib
import urllib.error
from typing import Callable

import numpy as np
import serving

KINDS = ("KIND_GPU", "KIND_CPU")

Tensors = dict[str, tuple[str, list[int]]]
# Of each chain its steps, inputs and outputs.
CHAINS: dict[str, tuple[list[dict], Tensors, Tensors]] = {
    "gather": (
        [{"op": "gather", "input": ["ENTRIES", "INDICES"], "output": "TAKEN"}],
        {"ENTRIES": ("FP32", [-1, 3]), "INDICES": ("INT64", [-1])},
        {"TAKEN": ("FP32", [-1, 3])},
    ),
    "pad": (
        [{"op": "pad", "length": 6, "value": -1, "output": ["PADDED", "MASK"]}],
        {"X": ("INT32", [-1, 2])},
        {"PADDED": ("INT32", [6, 2]), "MASK": ("INT64", [6])},
    ),
    "unpad": (
        [{"op": "unpad", "input": ["X", "LENGTH"], "output": "CUT"}],
        {"X": ("INT32", [-1, 2]), "LENGTH": ("INT32", [1])},
        {"CUT": ("INT32", [-1, 2])},
    ),
    "nms": (
        [
            {
                "op": "nms",
                "input": ["BOXES", "SCORES"],
                "output": ["BEST", "OF", "CLASSES", "COUNT"],
                "iou_threshold": 0.5,
                "score_threshold": 0.1,
                "max_output": 5,
            }
        ],
        {"BOXES": ("FP32", [-1, 4]), "SCORES": ("FP32", [-1, 2])},
        {"BEST": ("FP32", [5, 4]), "OF": ("FP32", [5]), "CLASSES": ("INT64", [5]), "COUNT": ("INT32", [1])},
    ),
    "shorter": (
        [{"op": "decode"}, {"op": "resize", "shorter": 6}, {"op": "normalize", "scale": 0.25}],
        {"FILE": ("STRING", [1])},
        {"PIXELS": ("FP32", [-1, -1, 3])},
    ),
}


def write(folder: pathlib.Path, delay_us: int = 0, options: str = "", limit: str = "", batching: str = "") -> pathlib.Path:
    """A repository of all chains, on a device and on the processors."""
    for name, (steps, *tensors) in CHAINS.items():
        text = json.dumps(steps).replace('"', '\\"')
        listed = "".join(
            f'{which} [{{ name: "{tensor}" data_type: TYPE_{datatype} dims: {dims} }}]\n'
            for which, named in zip(("input", "output"), tensors)
            for tensor, (datatype, dims) in named.items()
        )
        for kind in KINDS:
            config = f"""
backend: "ops" max_batch_size: 8 dynamic_batching {{ max_queue_delay_microseconds: {delay_us} {batching} }} {options}
parameters {{ key: "chain" value: {{ string_value: "{text}" }} }}
instance_group {{ kind: {kind} {limit if kind == "KIND_GPU" else ""} }}
{listed}"""
            serving.write(folder, f"{name}_{kind}", config)
    return folder


def gathered(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Entries and indices, now and then one that names none."""
    rows, count, wanted = random.integers(1, 4), random.integers(0, 5), random.integers(0, 6)
    last = count + (random.integers(4) == 0)
    indices = random.integers(0, max(last, 1), (rows, wanted))
    return {"ENTRIES": random.standard_normal((rows, count, 3), dtype=np.float32), "INDICES": indices}


def padded(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Sequences, of which some are too long."""
    return {"X": random.integers(-99, 99, (random.integers(1, 4), random.integers(0, 8), 2), dtype=np.int32)}


def cut(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Sequences and the length to which they are cut; now and then too long, or one for each."""
    rows, odd = random.integers(1, 4), random.integers(4) == 0
    lengths = random.integers(0, 6, (rows, 1)) if odd else np.full((rows, 1), random.integers(0, 5))
    return {"X": random.integers(-99, 99, (rows, 4, 2), dtype=np.int32), "LENGTH": lengths.astype(np.int32)}


def boxes(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Boxes with scores; sometimes none."""
    rows, count = random.integers(1, 4), random.integers(0, 30)
    corners = random.integers(0, 20, (rows, count, 4)).astype(np.float32)
    corners[..., 2:] += corners[..., :2]
    return {"BOXES": corners, "SCORES": random.random((rows, count, 2), dtype=np.float32)}


def pictures(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Files, those of a request of one size, now and then not."""
    width, rows = int(random.integers(7, 12)), int(random.integers(1, 4))
    odd = int(random.integers(5) == 0)
    made = [serving.png(width + odd * row, 9, row) for row in range(rows)]
    return {"FILE": np.array(made, dtype=np.object_).reshape(-1, 1)}


GIVEN: dict[str, Callable[[np.random.Generator], dict[str, np.ndarray]]] = {
    "gather": gathered,
    "pad": padded,
    "unpad": cut,
    "nms": boxes,
    "shorter": pictures,
}


def check(server: serving.Server) -> int:
    """That all chains answer alike in both places, refusals too; gives how many requests did."""
    checked = 0
    for name, make in GIVEN.items():
        for seed in range(20):
            given = make(np.random.default_rng(seed))
            got, expected = (answer(server, f"{name}_{kind}", given) for kind in KINDS)
            assert type(got) is type(expected), (got, expected)
            if isinstance(expected, str):
                assert got.replace("KIND_GPU", "KIND_CPU") == expected, (got, expected)
            else:
                assert got.keys() == expected.keys()
                for output, array in expected.items():
                    np.testing.assert_allclose(got[output], array, rtol=1e-5, atol=1e-5)
            checked += 1
    return checked


def answer(server: serving.Server, model: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray] | str:
    """The outputs of a model, or the words in which it refuses."""
    types = {"int32": "INT32", "int64": "INT64", "float32": "FP32", "object": "BYTES"}
    try:
        outputs = server.infer(model, {name: (types[str(array.dtype)], array) for name, array in given.items()})
    except urllib.error.HTTPError as refused:
        return json.loads(refused.read())["error"]
    return {name: np.array(output["data"]).reshape(output["shape"]) for name, output in outputs.items()}
