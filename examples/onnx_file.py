"""Reads and writes just enough of the ONNX file format, with nothing but the standard library.

An ONNX file is a protobuf `ModelProto`. The field numbers used here are those of the published
`onnx.proto`: ModelProto.graph = 7 and metadata_props = 14, GraphProto.node = 1, and so on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

IR_VERSION = 8
OPSET_VERSION = 13
FLOAT = 1

Attribute = int | float | str | Sequence[int]


def metadata(model: bytes) -> dict[str, str]:
    """The key-value pairs that the maker of a model stored in it."""
    pairs = {}
    for number, entry in fields(model):
        if number == 14 and isinstance(entry, bytes):
            texts = {n: v.decode("utf-8") for n, v in fields(entry) if isinstance(v, bytes)}
            pairs[texts.get(1, "")] = texts.get(2, "")
    return pairs


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message as (number, value); fixed-width values stay bytes."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = read_varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            length, at = read_varint(message, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"not an ONNX file: wire type {wire_type} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"not an ONNX file: field {number} ends {at + length - len(message)} bytes past its end")
        yield number, message[at : at + length]
        at += length


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(message):
            raise ValueError("not an ONNX file: it ends inside a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"not an ONNX file: a number of more than ten bytes ends at byte {at}")


def model(graph: bytes, producer: str) -> bytes:
    """A whole ONNX file around `graph`."""
    opset = integer(2, OPSET_VERSION)
    return integer(1, IR_VERSION) + text(2, producer) + nested(7, graph) + nested(8, opset)


def graph(
    name: str,
    nodes: Sequence[bytes],
    initializers: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
) -> bytes:
    parts = [nested(1, node) for node in nodes]
    parts.append(text(2, name))
    parts += [nested(5, tensor) for tensor in initializers]
    parts += [nested(11, value) for value in inputs]
    parts += [nested(12, value) for value in outputs]
    return b"".join(parts)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> bytes:
    parts = [text(1, name) for name in inputs]
    parts += [text(2, output), text(3, output), text(4, operator)]
    parts += [nested(5, attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts)


def attribute(name: str, value: Attribute) -> bytes:
    kind_float, kind_int, kind_string, kind_ints = 1, 2, 3, 7
    if isinstance(value, float):
        return text(1, name) + tag(2, 5) + struct.pack("<f", value) + integer(20, kind_float)
    if isinstance(value, int):
        return text(1, name) + integer(3, value) + integer(20, kind_int)
    if isinstance(value, str):
        return text(1, name) + text(4, value) + integer(20, kind_string)
    return text(1, name) + b"".join(integer(8, item) for item in value) + integer(20, kind_ints)


def float_tensor(name: str, shape: Sequence[int], little_endian: bytes) -> bytes:
    dimensions = b"".join(integer(1, size) for size in shape)
    return dimensions + integer(2, FLOAT) + text(8, name) + nested(9, little_endian)


def float_value(name: str, shape: Sequence[int | str]) -> bytes:
    """A graph input or output; a size that is a string is a dimension left open."""
    sizes = b"".join(nested(1, text(2, s) if isinstance(s, str) else integer(1, s)) for s in shape)
    tensor_type = integer(1, FLOAT) + nested(2, sizes)
    return text(1, name) + nested(2, nested(1, tensor_type))


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def integer(number: int, value: int) -> bytes:
    return tag(number, 0) + varint(value)


def text(number: int, value: str) -> bytes:
    return nested(number, value.encode("utf-8"))


def nested(number: int, value: bytes) -> bytes:
    return tag(number, 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
