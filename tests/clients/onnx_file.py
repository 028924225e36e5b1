"""Writes small ONNX models, field by field of onnx.proto, so that no package is needed to make them."""

from __future__ import annotations

import numpy as np

FLOAT, INT32, STRING = 1, 6, 8
IR_VERSION, OPSET = 9, 19


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _value_info(name: str, element: int, dims: list) -> bytes:
    shape = b"".join(
        _bytes(1, _integer(1, dim) if isinstance(dim, int) else _bytes(2, dim)) for dim in dims
    )
    tensor = _integer(1, element) + _bytes(2, shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def node(kind: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    """A node, with numbers as its attributes if it has any."""
    names = b"".join(_bytes(1, name) for name in inputs)
    told = (_bytes(1, name) + _integer(3, value) + _integer(20, 2) for name, value in attributes.items())
    return _bytes(1, names + _bytes(2, output) + _bytes(4, kind) + b"".join(_bytes(5, each) for each in told))


def weights(name: str, values: np.ndarray) -> bytes:
    """A constant tensor of FP32."""
    dims = b"".join(_integer(1, dim) for dim in values.shape)
    raw = values.astype("<f4").tobytes()
    return _bytes(5, dims + _integer(2, FLOAT) + _bytes(8, name) + _bytes(9, raw))


def graph(parts: list[bytes], inputs: dict[str, tuple[int, list]], outputs: dict[str, tuple[int, list]]) -> bytes:
    """A model of nodes and weights; of each input and output the type and the dimensions, numbers or names."""
    told = b"".join(parts) + _bytes(2, "test")
    told += b"".join(_bytes(11, _value_info(name, *port)) for name, port in inputs.items())
    told += b"".join(_bytes(12, _value_info(name, *port)) for name, port in outputs.items())
    return _integer(1, IR_VERSION) + _bytes(8, _bytes(1, "") + _integer(2, OPSET)) + _bytes(7, told)


def model(parts: list[bytes], element: int, x: list, y: list, names: tuple[str, str] = ("x", "y")) -> bytes:
    """A model of one input and one output, `x` and `y` unless named; a dimension is a number or a name."""
    return graph(parts, {names[0]: (element, x)}, {names[1]: (element, y)})


def mlp(seed: int = 0) -> bytes:
    """Two layers with random weights: [N,4] to [N,3]."""
    random = np.random.default_rng(seed)
    parts = [
        weights("w0", random.standard_normal((4, 8))),
        weights("w1", random.standard_normal((8, 3))),
        node("MatMul", ["x", "w0"], "hidden"),
        node("Relu", ["hidden"], "active"),
        node("MatMul", ["active", "w1"], "y"),
    ]
    return model(parts, FLOAT, ["N", 4], ["N", 3])


def relu() -> bytes:
    """Any matrix, negative numbers cut off."""
    return model([node("Relu", ["x"], "y")], FLOAT, ["rows", "columns"], ["rows", "columns"])


# The kinds of batch inputs, by the names of their tensors in `ragged`, and how many dimensions each has.
BATCH_INPUTS = {
    "count": ("BATCH_ELEMENT_COUNT", 1),
    "ends": ("BATCH_ACCUMULATED_ELEMENT_COUNT", 1),
    "bounds": ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", 1),
    "longest": ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", 1),
    "shapes": ("BATCH_ITEM_SHAPE", 2),
    "flat_shapes": ("BATCH_ITEM_SHAPE_FLATTEN", 1),
}


def ragged(element: int) -> bytes:
    """Numbers in one row, without their signs, and what batch inputs of this type tell: `NAME_told` has in each row
    all that has one dimension, and of the others what belongs to the row."""
    parts = [node("Abs", ["x"], "y"), node("Sub", ["row", "row"], "zero")]
    inputs: dict[str, tuple[int, list]] = {"x": (FLOAT, ["all"]), "row": (element, ["rows", 1])}
    outputs: dict[str, tuple[int, list]] = {"y": (FLOAT, ["all"])}
    for name, (_, rank) in BATCH_INPUTS.items():
        parts.append(node("Add", ["zero", name], f"{name}_told"))
        inputs[name] = (element, [f"{name}_{axis}" for axis in range(rank)])
        outputs[f"{name}_told"] = (element, ["rows", f"{name}_told_1"])
    return graph(parts, inputs, outputs)


def sums() -> bytes:
    """What came so far and one number more; twice, as output and as what the sequence carries on."""
    parts = [node("Add", ["x", "so_far"], "y"), node("Identity", ["y"], "sum")]
    one = (FLOAT, ["N", 1])
    return graph(parts, {"x": one, "so_far": one}, {"y": one, "sum": one})


def collects() -> bytes:
    """All that came so far and one number more; twice, as output and as what the sequence carries on."""
    parts = [node("Concat", ["so_far", "x"], "y", axis=1), node("Identity", ["y"], "all")]
    many = (FLOAT, ["N", "more"])
    return graph(parts, {"x": (FLOAT, ["N", 1]), "so_far": (FLOAT, ["N", "count"])}, {"y": many, "all": many})


def strings() -> bytes:
    """Strings as they come."""
    return model([node("Identity", ["x"], "y")], STRING, ["N"], ["N"])


def rows() -> bytes:
    """Numbers in rows of four, each plus four times how many rows there are in the batch."""
    parts = [
        node("Sub", ["x", "x"], "zeros"),
        node("Cos", ["zeros"], "ones"),
        node("ReduceSum", ["ones"], "all"),
        node("Add", ["x", "all"], "y"),
    ]
    return model(parts, FLOAT, ["N", 4], ["N", 4])
