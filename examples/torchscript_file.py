"""Reads and writes just enough of the TorchScript file format, with nothing but the standard library.

A TorchScript file is a zip archive of one folder: `code/__torch__.py` holds the classes in
TorchScript's own words, `data.pkl` the module as a pickle (protocol 2), and `data/N` the bytes of
tensor N. The pickle is written here opcode by opcode, since the module's class is no Python class.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import NamedTuple

FORMAT_VERSION = 3
STORAGES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}

# Opcodes of the pickle format, by the names of Python's pickletools.
PROTO, STOP, GLOBAL, MARK, TUPLE, EMPTY_TUPLE = b"\x80\x02", b".", b"c", b"(", b"t", b")"
NEWOBJ, BUILD, EMPTY_DICT, SETITEMS, REDUCE, BINPERSID = b"\x81", b"b", b"}", b"u", b"R", b"Q"
NONE, TRUE, FALSE, BININT, LONG1, BINFLOAT, BINUNICODE = b"N", b"\x88", b"\x89", b"J", b"\x8a", b"G", b"X"


class Tensor(NamedTuple):
    """A contiguous tensor; `type` is one of STORAGES."""

    shape: tuple[int, ...]
    data: bytes
    type: str = "f4"


class Module(NamedTuple):
    """An object of a class in `__torch__.py`: that class's name and its attributes in order."""

    class_name: str
    attributes: dict[str, Tensor | Module | Pickled | bool | int | float | str | None]


class Pickled(NamedTuple):
    """A value that is a pickle already, without its first and its last opcode."""

    opcodes: bytes


def write(code: str, module: Module) -> bytes:
    """The file of `module`, whose class `code` defines."""
    tensors: list[Tensor] = []
    content = {
        "data.pkl": PROTO + b"".join(_module(module, tensors)) + STOP,
        "code/__torch__.py": code.encode(),
        "constants.pkl": PROTO + EMPTY_TUPLE + STOP,
        "version": f"{FORMAT_VERSION}\n".encode(),
        "byteorder": b"little",
    }
    content |= {f"data/{index}": tensor.data for index, tensor in enumerate(tensors)}
    return _archive(content)


def wrap(archive: bytes, code: str, class_name: str, attribute: str) -> bytes:
    """A file whose module is of the class that `code` adds, with the module of `archive` as its only
    attribute of its own."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        files = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    content = {name: data for name, data in files.items() if not name.endswith(".debug_pkl")}
    pickled = content["data.pkl"]
    if not (pickled.startswith(PROTO) and pickled.endswith(STOP)):
        raise ValueError("unexpected data.pkl: expected a pickle of protocol 2")
    module = Module(class_name, {"training": False, attribute: Pickled(pickled[len(PROTO) : -len(STOP)])})
    content["data.pkl"] = PROTO + b"".join(_module(module, [])) + STOP
    content["code/__torch__.py"] = content.get("code/__torch__.py", b"") + code.encode()
    return _archive(content)


def root_class(archive: bytes) -> str:
    """The class of a file's module, such as `__torch__.Model`."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        name = next(name for name in file.namelist() if name.partition("/")[2] == "data.pkl")
        pickled = file.read(name)
    if pickled[: len(PROTO) + 1] != PROTO + GLOBAL:
        raise ValueError("unexpected data.pkl: expected it to begin with a class")
    module, name = pickled[len(PROTO) + 1 :].split(b"\n", 2)[:2]
    return f"{module.decode()}.{name.decode()}"


def _module(module: Module, tensors: list[Tensor]):
    yield _name(*module.class_name.rpartition(".")[::2])
    yield EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + MARK
    for name, value in module.attributes.items():
        yield _text(name)
        yield from _value(value, tensors)
    yield SETITEMS + BUILD


def _value(value, tensors: list[Tensor]):
    match value:
        case Module():
            yield from _module(value, tensors)
        case Pickled(opcodes):
            yield opcodes
        case Tensor():
            tensors.append(value)
            yield from _tensor(value, len(tensors) - 1)
        case None:
            yield NONE
        case bool():
            yield TRUE if value else FALSE
        case int():
            yield _integer(value)
        case float():
            yield BINFLOAT + struct.pack(">d", value)
        case str():
            yield _text(value)
        case _:
            raise TypeError(f"unexpected attribute: expected a tensor, module or plain value, got {value!r}")


def _tensor(tensor: Tensor, index: int):
    """A call of torch's function that makes a tensor of a stored array."""
    count = math.prod(tensor.shape)
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    yield _name("torch._utils", "_rebuild_tensor_v2") + MARK
    yield MARK + _text("storage") + _name("torch", STORAGES[tensor.type]) + _text(str(index))
    yield _text("cpu") + _integer(count) + TUPLE + BINPERSID
    yield _integer(0)
    for numbers in (tensor.shape, strides):
        yield MARK + b"".join(map(_integer, numbers)) + TUPLE
    yield FALSE + _name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE
    yield TUPLE + REDUCE


def _name(module: str, name: str) -> bytes:
    return GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return BININT + struct.pack("<i", value)
    return LONG1 + b"\x08" + struct.pack("<q", value)


def _archive(content: dict[str, bytes]) -> bytes:
    """The same bytes for the same content: nothing is compressed, and no file has a date."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
    return file.getvalue()
