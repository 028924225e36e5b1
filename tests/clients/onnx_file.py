"""Writes small ONNX models, field by field of onnx.proto, so that no package is needed to make them."""

from __future__ import annotations

import numpy as np

FLOAT, STRING = 1, 8
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


def node(kind: str, inputs: list[str], output: str) -> bytes:
    """A node without attributes."""
    names = b"".join(_bytes(1, name) for name in inputs)
    return _bytes(1, names + _bytes(2, output) + _bytes(4, kind))


def weights(name: str, values: np.ndarray) -> bytes:
    """A constant tensor of FP32."""
    dims = b"".join(_integer(1, dim) for dim in values.shape)
    raw = values.astype("<f4").tobytes()
    return _bytes(5, dims + _integer(2, FLOAT) + _bytes(8, name) + _bytes(9, raw))


def model(parts: list[bytes], element: int, x: list, y: list, names: tuple[str, str] = ("x", "y")) -> bytes:
    """A model of one input and one output, `x` and `y` unless named; a dimension is a number or a name."""
    graph = b"".join(parts) + _bytes(2, "test")
    graph += _bytes(11, _value_info(names[0], element, x)) + _bytes(12, _value_info(names[1], element, y))
    opset = _bytes(1, "") + _integer(2, OPSET)
    return _integer(1, IR_VERSION) + _bytes(8, opset) + _bytes(7, graph)


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


def ragged() -> bytes:
    """Numbers in one row, without their signs, and how many of them there are by a batch input."""
    parts = [node("Abs", ["x"], "y"), node("Identity", ["n"], "counts"), node("Identity", ["ends"], "ends_out")]
    graph = b"".join(parts) + _bytes(2, "test")
    inputs = [_value_info("x", FLOAT, ["all"]), _value_info("n", FLOAT, ["requests"]), _value_info("ends", FLOAT, ["requests"])]
    outputs = [_value_info("y", FLOAT, ["all"]), _value_info("counts", FLOAT, ["requests"]), _value_info("ends_out", FLOAT, ["requests"])]
    graph += b"".join(_bytes(11, each) for each in inputs) + b"".join(_bytes(12, each) for each in outputs)
    return _integer(1, IR_VERSION) + _bytes(8, _bytes(1, "") + _integer(2, OPSET)) + _bytes(7, graph)


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
