#!/usr/bin/env python3
"""Puts a PyTorch model of your own into a model repository, as TorchScript with its config.pbtxt.

Runs where PyTorch is installed. The model is what a function or class of a Python module returns:

    python3 examples/convert_model.py torchvision.models:resnet18 \\
        --name resnet --input 3,224,224 --max-batch-size 16 --repository models

scripts it (torch.jit.script: loops and branches stay what they are) or, with --trace, records what it
does with random inputs (torch.jit.trace: whatever depends on their values is fixed). Each --input gives
the shape of one argument of `forward`, without the batch dimension, and its type where that is not
FP32, as in INT64:128; -1 stands for any size. What was written is run beside the model before the
program ends.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
# The sizes of a dimension that may have any, in the inputs that are tried.
ANY_SIZES = (8, 16)
TOLERANCE = 1e-4


class Input(NamedTuple):
    """The type and the shape of an argument, without the batch dimension."""

    type: str
    dims: list[int]

    def random(self, rows: int | None, any_size: int = ANY_SIZES[0]) -> torch.Tensor:
        """Values to try, of so many rows; None for a model that does not batch."""
        shape = [size if size >= 0 else any_size for size in self.dims]
        shape = shape if rows is None else [rows, *shape]
        if TYPES[self.type].is_floating_point:
            return torch.randn(shape).to(TYPES[self.type])
        return torch.randint(0, 2, shape).to(TYPES[self.type])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODULE:CALLABLE", help="what returns the model when it is called")
    parser.add_argument("--name", required=True, help="the model's name in the repository")
    parser.add_argument("--input", required=True, type=read_input, action="append", metavar="[TYPE:]DIMS")
    parser.add_argument("--max-batch-size", type=int, default=0, help="0 where tensors have no batch dimension")
    parser.add_argument("--trace", action="store_true", help="trace the model in place of scripting it")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="the folder of models (models)")
    arguments = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    module, _, name = arguments.model.partition(":")
    model = getattr(importlib.import_module(module), name)().eval()
    try:
        folder = convert(model, arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {arguments.name} is ready to be served")
    return 0


def read_input(text: str) -> Input:
    kind, _, dims = text.rpartition(":")
    kind = kind or "FP32"
    if kind not in TYPES:
        raise argparse.ArgumentTypeError(f"unknown type '{kind}'; there are: {', '.join(TYPES)}")
    return Input(kind, [int(size) for size in dims.split(",") if size])


def convert(model: torch.nn.Module, arguments: argparse.Namespace) -> Path:
    batches = arguments.max_batch_size > 0
    example = tuple(each.random(2 if batches else None) for each in arguments.input)
    with torch.inference_mode():
        converted = torch.jit.trace(model, example) if arguments.trace else torch.jit.script(model)
        folder = arguments.repository / arguments.name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        file = folder / "1" / "model.pt"
        converted.save(str(file))
        outputs = agreed(model, torch.jit.load(str(file)), arguments)
    # A wrapper with *args hides the names of what it wraps.
    names = [name for name in inspect.signature(model.forward).parameters if name not in ("args", "kwargs")]
    if len(names) < len(arguments.input):
        names = [f"INPUT__{index}" for index in range(len(arguments.input))]
    inputs = [(name, each.type, each.dims) for name, each in zip(names, arguments.input)]
    (folder / "config.pbtxt").write_text(configuration(arguments.max_batch_size, inputs, outputs))
    return folder


def agreed(model, converted, arguments) -> list[tuple[str, str, list[int]]]:
    """The outputs, of which both say the same with one row and with several, and with more than one size of what may
    have any."""
    shapes: list[list[torch.Tensor]] = []
    for rows, any_size in zip((1, 3) if arguments.max_batch_size > 0 else (None, None), ANY_SIZES):
        values = [each.random(rows, any_size) for each in arguments.input]
        expected, got = (tensors(each(*values)) for each in (model, converted))
        for index, (want, have) in enumerate(zip(expected, got, strict=True)):
            if not torch.allclose(want.double(), have.double(), atol=TOLERANCE, rtol=TOLERANCE):
                raise ValueError(
                    f"output {index} of the converted model differs with {rows or 1} rows: try it "
                    f"{'without' if arguments.trace else 'with'} --trace"
                )
        shapes.append(got)
    names = {value: name for name, value in TYPES.items()}
    found = []
    for index, tensor in enumerate(shapes[0]):
        if tensor.dtype not in names:
            raise ValueError(f"output {index} is of type {tensor.dtype}, which the protocol does not have")
        if arguments.max_batch_size > 0 and [each[index].shape[:1] for each in shapes] != [(1,), (3,)]:
            raise ValueError(f"output {index} has no batch dimension: its first size is not the number of rows")
        others = [each[index].shape for each in shapes]
        if len({len(shape) for shape in others}) > 1:
            raise ValueError(f"output {index} has now {others[0]}, now {others[1]}: expected as many dimensions")
        # What follows from an input of any size may have any, too.
        dims = [first if first == second else -1 for first, second in zip(*others)]
        dims = dims[1:] if arguments.max_batch_size > 0 else dims
        found.append((f"OUTPUT__{index}", names[tensor.dtype], dims))
    return found


def tensors(returned: object) -> list[torch.Tensor]:
    found = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    for index, each in enumerate(found):
        if not isinstance(each, torch.Tensor):
            raise ValueError(f"output {index} is of type {type(each).__name__}; expected a tensor")
    return found


def configuration(max_batch_size: int, inputs: list, outputs: list) -> str:
    lines = ['platform: "pytorch_libtorch"', f"max_batch_size: {max_batch_size}"]
    for kind, entries in (("input", inputs), ("output", outputs)):
        listed = ",\n".join(
            f'  {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {", ".join(map(str, dims))} ] }}'
            for name, datatype, dims in entries
        )
        lines.append(f"{kind} [\n{listed}\n]")
    if max_batch_size > 0:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
