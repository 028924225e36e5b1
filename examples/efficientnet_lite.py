"""Writes EfficientNet-Lite0 as ONNX and as TorchScript from the published PyTorch weights, without PyTorch.

The weights come in PyTorch's first file format: five pickles in a row (magic number, version,
machine, tensors, names of the stored arrays), then the arrays themselves. The network is the one
of https://arxiv.org/abs/1905.11946 without squeeze-and-excitation and with ReLU6; the batch
normalisations stay in the graph, since every ONNX runtime folds them into the convolutions.

The network is written down once, in ONNX's operators; for TorchScript each becomes one line of code.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from array import array
from collections import OrderedDict
from typing import NamedTuple

import onnx_file
import torchscript_file

MAGIC = 0x1950A86A20F9469CFC6C
BATCH_NORM_EPSILON = 1e-3
IMAGE_SIZE = 224

# repeats, kernel size, stride of the first, expansion ratio
STAGES = (
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
)


def to_onnx(weights: bytes) -> bytes:
    """ONNX with `image` FP32 [batch, 3, 224, 224] and `probabilities` FP32 [batch, 1000]."""
    network = describe(weights)
    floats = [("zero", (), struct.pack("<f", 0.0)), ("six", (), struct.pack("<f", 6.0))]
    floats += [(name, *network.tensors[name]) for name in network.weights]
    graph = onnx_file.graph(
        "efficientnet_lite0",
        [onnx_file.node(node.operator, node.inputs, node.output, **node.attributes) for node in network.nodes],
        [onnx_file.float_tensor(name, shape, data) for name, shape, data in floats],
        [onnx_file.float_value("image", ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])],
        [onnx_file.float_value("probabilities", ["batch", 1000])],
    )
    return onnx_file.model(graph, "nereid examples")


def to_torchscript(weights: bytes) -> bytes:
    """TorchScript whose `forward(image)` returns the probabilities, of the same shapes."""
    network = describe(weights)
    sizes = {"image": IMAGE_SIZE}
    lines = [f"    {identifier(node.output)} = {expression(node, network, sizes)}" for node in network.nodes]
    names = [identifier(name) for name in network.weights]
    code = "\n".join(
        [
            "class EfficientNetLite(Module):",
            f"  __parameters__ = {names}",
            "  __buffers__ = []",
            *(f"  {name} : Tensor" for name in names),
            "  training : bool",
            "  def forward(self: __torch__.EfficientNetLite, image: Tensor) -> Tensor:",
            *lines,
            "    return probabilities\n",
        ]
    )
    tensors = {identifier(name): torchscript_file.Tensor(*network.tensors[name]) for name in network.weights}
    module = torchscript_file.Module("__torch__.EfficientNetLite", {**tensors, "training": False})
    return torchscript_file.write(code, module)


def identifier(name: str) -> str:
    return name.replace(".", "_")


def expression(node: Node, network: Network, sizes: dict[str, int]) -> str:
    """What a node computes, in TorchScript's words; `sizes` has each picture's width and height."""
    x, *weights = (f"self.{identifier(n)}" if n in network.tensors else identifier(n) for n in node.inputs)
    size = sizes.get(node.inputs[0])
    match node.operator:
        case "Conv":
            kernel, stride = node.attributes["kernel_shape"][0], node.attributes["strides"][0]
            sizes[node.output] = math.ceil(size / stride)
            # More at the end where it does not come out even, as ONNX's SAME_UPPER has it.
            padding = max((sizes[node.output] - 1) * stride + kernel - size, 0)
            low, high = padding // 2, padding - padding // 2
            padded = x if padding == 0 else f"torch.constant_pad_nd({x}, [{low}, {high}, {low}, {high}], 0)"
            rest = f"None, [{stride}, {stride}], [0, 0], [1, 1], {node.attributes['group']}"
            return f"torch.conv2d({padded}, {weights[0]}, {rest})"
        case "BatchNormalization":
            sizes[node.output] = size
            return f"torch.batch_norm({x}, {', '.join(weights)}, False, 0., {BATCH_NORM_EPSILON}, True)"
        case "Clip":
            sizes[node.output] = size
            return f"torch.hardtanh({x}, 0., 6.)"
        case "Add":
            sizes[node.output] = size
            return f"torch.add({x}, {weights[0]})"
        case "GlobalAveragePool":
            return f"torch.adaptive_avg_pool2d({x}, [1, 1])"
        case "Flatten":
            return f"torch.flatten({x}, 1)"
        case "Gemm":
            return f"torch.linear({x}, {', '.join(weights)})"
        case "Softmax":
            return f"torch.softmax({x}, 1)"
    raise ValueError(f"unexpected operator '{node.operator}'")


def describe(weights: bytes) -> Network:
    """The whole network, from `image` to `probabilities`."""
    network = Network(read_tensors(weights))
    x = network.convolution("image", "_conv_stem", "_bn0", stride=2, activate=True)
    block = 0
    for repeats, kernel, first_stride, expansion in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = network.block(x, f"_blocks.{block}", kernel, stride, expansion, skip=repeat > 0)
            block += 1
    x = network.convolution(x, "_conv_head", "_bn1", activate=True)
    x = network.node("GlobalAveragePool", [x], "pool")
    x = network.node("Flatten", [x], "features", axis=1)
    x = network.node("Gemm", [x, network.weight("_fc.weight"), network.weight("_fc.bias")], "logits", transB=1)
    network.node("Softmax", [x], "probabilities", axis=1)
    return network


class Node(NamedTuple):
    """One operator, by ONNX's names."""

    operator: str
    inputs: list[str]
    output: str
    attributes: dict[str, onnx_file.Attribute]


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    data: bytes


class Network:
    """The graph under construction; every method returns the name of the tensor it adds."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.nodes: list[Node] = []
        self.weights: list[str] = []

    def block(self, x: str, name: str, kernel: int, stride: int, expansion: int, skip: bool) -> str:
        """An inverted residual: widen, filter each channel by itself, narrow."""
        wide = x
        if expansion != 1:
            wide = self.convolution(x, f"{name}._expand_conv", f"{name}._bn0", activate=True)
        filtered = self.convolution(
            wide, f"{name}._depthwise_conv", f"{name}._bn1", kernel=kernel, stride=stride, depthwise=True, activate=True
        )
        narrow = self.convolution(filtered, f"{name}._project_conv", f"{name}._bn2")
        return self.node("Add", [narrow, x], f"{name}.sum") if skip else narrow

    def convolution(
        self,
        x: str,
        convolution: str,
        normalisation: str,
        kernel: int | None = None,
        stride: int = 1,
        depthwise: bool = False,
        activate: bool = False,
    ) -> str:
        shape = self.tensors[f"{convolution}.weight"].shape
        if kernel is not None and shape[2] != kernel:
            raise ValueError(f"unexpected kernel of '{convolution}': expected {kernel}, got {shape[2]}")
        x = self.node(
            "Conv",
            [x, self.weight(f"{convolution}.weight")],
            f"{convolution}.output",
            kernel_shape=list(shape[2:]),
            strides=[stride, stride],
            group=shape[0] if depthwise else 1,
            auto_pad="SAME_UPPER",
        )
        parameters = [self.weight(f"{normalisation}.{p}") for p in ("weight", "bias", "running_mean", "running_var")]
        x = self.node("BatchNormalization", [x, *parameters], f"{normalisation}.output", epsilon=BATCH_NORM_EPSILON)
        if not activate:
            return x
        return self.node("Clip", [x, "zero", "six"], f"{normalisation}.relu6")

    def node(self, operator: str, inputs: list[str], output: str, **attributes: onnx_file.Attribute) -> str:
        self.nodes.append(Node(operator, inputs, output, attributes))
        return output

    def weight(self, name: str) -> str:
        self.weights.append(name)
        return name


class Storage(NamedTuple):
    key: str
    length: int


class Strided(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TensorUnpickler(pickle.Unpickler):
    """Knows the four names that a file of tensors uses and refuses every other one."""

    def find_class(self, module: str, name: str) -> object:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "FloatStorage"): "float",
            ("torch", "LongStorage"): "long",
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Strided(
                storage, offset, tuple(shape), tuple(strides)
            ),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"unexpected type in the weights: {module}.{name}")
        return known[module, name]

    def persistent_load(self, reference: tuple) -> Storage:
        _, kind, key, _, length, _ = reference
        return Storage(key, length if kind == "float" else 2 * length)


def read_tensors(weights: bytes) -> dict[str, Tensor]:
    """The float tensors of a PyTorch file as contiguous little-endian FP32."""
    file = io.BytesIO(weights)
    magic, _version, machine, tensors, keys = (TensorUnpickler(file).load() for _ in range(5))
    if magic != MAGIC or not machine["little_endian"]:
        raise ValueError("not a PyTorch weights file of the first, little-endian format")
    words = {tensor.storage.key: tensor.storage.length for tensor in tensors.values()}
    arrays = {}
    for key in keys:
        file.seek(8, io.SEEK_CUR)  # the length once more, in elements
        arrays[key] = file.read(4 * words[key])
    return {
        name: Tensor(tensor.shape, contiguous(tensor, arrays[tensor.storage.key]))
        for name, tensor in tensors.items()
        if tensor.shape
    }


def contiguous(tensor: Strided, stored: bytes) -> bytes:
    """Row-major bytes of a tensor that may be stored transposed.

    Works on 32-bit words rather than floats, so that no bit changes on the way.
    """
    words = array("I", stored)
    count = math.prod(tensor.shape)
    result = array("I", bytes(4 * count))
    widest = max(range(len(tensor.shape)), key=lambda axis: tensor.shape[axis])
    targets = row_major_strides(tensor.shape)
    size, source_step, target_step = tensor.shape[widest], tensor.strides[widest], targets[widest]
    others = [axis for axis in range(len(tensor.shape)) if axis != widest]
    for row in range(count // size):
        source, target = tensor.offset, 0
        for axis in reversed(others):
            row, index = divmod(row, tensor.shape[axis])
            source += index * tensor.strides[axis]
            target += index * targets[axis]
        result[target : target + (size - 1) * target_step + 1 : target_step] = words[
            source : source + (size - 1) * source_step + 1 : source_step
        ]
    return result.tobytes()


def row_major_strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
