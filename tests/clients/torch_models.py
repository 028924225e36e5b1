"""TorchScript models that show one convention each, written without PyTorch."""

from __future__ import annotations

import pathlib
import struct
import sys
from dataclasses import dataclass, field

from . import models

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import torchscript_file  # noqa: E402  (the path to it is only known here)

FLOAT = struct.pack("<f", 0.0)


@dataclass
class TorchModel:
    """A folder of a model repository: its configuration and the body of its module's `forward`."""

    config: str
    arguments: str
    returns: str
    body: str
    attributes: dict = field(default_factory=dict)

    def file(self) -> bytes:
        """What model.pt holds."""
        buffers = [name for name, value in self.attributes.items() if isinstance(value, torchscript_file.Tensor)]
        types = {torchscript_file.Tensor: "Tensor", int: "int"}
        declared = "".join(f"  {name} : {types[type(value)]}\n" for name, value in self.attributes.items())
        body = "\n".join(f"    {line}" for line in self.body.splitlines())
        code = (
            f"class Model(Module):\n  __parameters__ = []\n  __buffers__ = {buffers}\n{declared}  training : bool\n"
            f"  def forward(self: __torch__.Model{', ' if self.arguments else ''}{self.arguments}) -> {self.returns}:\n"
            f"{body}\n"
        )
        attributes = {**self.attributes, "training": False}
        return torchscript_file.write(code, torchscript_file.Module("__torch__.Model", attributes))


def tensors(kind: str, *named: str, datatype: str = "FP32", dims: str = "-1") -> str:
    """A list of inputs or outputs of one type."""
    inner = ", ".join(f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] }}' for name in named)
    return f"{kind} [ {inner} ]\n"


def config(inputs: str, outputs: str, options: str = "", **form: str) -> str:
    """The configuration of a model; several names are divided by spaces."""
    given, taken = tensors("input", *inputs.split(), **form), tensors("output", *outputs.split(), **form)
    return f'platform: "pytorch_libtorch"\n{options}\n{given}{taken}'


def parameter(name: str, value: str) -> str:
    """A parameter of a configuration."""
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


DOUBLE = ("x: Tensor", "Tensor", "return torch.mul(x, 2)")
COUNT = 'n = torch.add_(self.n, 1)\nreturn torch.add(torch.mul(x, 0), n)'
# The elements of the tensors between the layers of `wide`, of four bytes.
WIDE = 4 << 20
ONE_INSTANCE = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
TWO_INSTANCES = "instance_group [ { kind: KIND_CPU count: 2 } ]\n"


def counter() -> dict:
    """The state of a module that counts its calls."""
    return {"n": torchscript_file.Tensor((1,), FLOAT)}


def conventions() -> dict[str, TorchModel]:
    """How tensors find arguments and results."""
    two = ("a: Tensor, b: Tensor", "Tuple[Tensor, Tensor]", "return (torch.sub(a, b), torch.mul(a, b))")
    return {
        "by_index": TorchModel(config("B__1 A__0", "PRODUCT__1 DIFFERENCE__0"), *two),
        "by_name": TorchModel(config("b a", "DIFFERENCE PRODUCT"), *two),
        "by_order": TorchModel(config("first second", "DIFFERENCE PRODUCT"), *two),
        "dictionary": TorchModel(
            config("left right", "OUTPUT__0"),
            "x: Dict[str, Tensor]",
            "Tensor",
            'return torch.sub(x["left"], x["right"])',
        ),
        "dictionary_out": TorchModel(
            config("x", "twice once"), "x: Tensor", "Dict[str, Tensor]", 'return {"once": x, "twice": torch.mul(x, 2)}'
        ),
        "untold": TorchModel(
            'platform: "pytorch_libtorch"\n',
            "texts: List[str], times: int",
            "List[str]",
            'out = annotate(List[str], [])\nfor i in range(torch.len(texts)):\n'
            "  for j in range(times):\n    _0 = torch.append(out, texts[i])\nreturn out",
        ),
        "half_told": TorchModel(
            'platform: "pytorch_libtorch"\ninput [ { data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
            + tensors("output", "OUTPUT__0"),
            *DOUBLE,
        ),
        "list_out": TorchModel(
            config("x", "OUTPUT__0 OUTPUT__1"), "x: Tensor", "List[Tensor]", "return [x, torch.neg(x)]"
        ),
        "strings": TorchModel(
            config("texts", "OUTPUT__0", datatype="STRING"),
            "texts: List[str]",
            "List[str]",
            'out = annotate(List[str], [])\nfor i in range(torch.len(texts)):\n'
            '  _0 = torch.append(out, torch.add(texts[i], "!"))\nreturn out',
        ),
        "numbers": TorchModel(
            'platform: "pytorch_libtorch"\n'
            'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "k" data_type: TYPE_INT32 dims: [ 1 ] },'
            ' { name: "f" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "negative" data_type: TYPE_BOOL dims: [ 1 ] } ]\n'
            + tensors("output", "OUTPUT__0"),
            "x: Tensor, k: int, f: float, negative: bool, unused: int=7",
            "Tensor",
            "y = torch.mul(torch.mul(x, k), f)\nif negative:\n  z = torch.neg(y)\nelse:\n  z = y\nreturn z",
        ),
        "transposed": TorchModel(
            config("x", "OUTPUT__0", dims="-1, -1"), "x: Tensor", "Tensor", "return torch.transpose(x, 0, 1)"
        ),
        "batched": TorchModel(config("x", "OUTPUT__0", models.batched(20_000, 8)), *DOUBLE),
        **{
            f"of_{name.lower()}": TorchModel(
                config("x", "OUTPUT__0", datatype=name), "x: Tensor", "Tensor", "return torch.cat([x, x])"
            )
            for name in models.TYPES
            if name != "BYTES"
        },
    }


def states() -> dict[str, TorchModel]:
    """Modules that keep something, or write where they should not."""
    shared = TWO_INSTANCES + parameter("ENABLE_WEIGHT_SHARING", "true")
    return {
        "counter": TorchModel(config("x", "OUTPUT__0", ONE_INSTANCE), "x: Tensor", "Tensor", COUNT, counter()),
        "shared_counter": TorchModel(config("x", "OUTPUT__0", shared), "x: Tensor", "Tensor", COUNT, counter()),
        "own_counters": TorchModel(config("x", "OUTPUT__0", TWO_INSTANCES), "x: Tensor", "Tensor", COUNT, counter()),
        "keeps_input": TorchModel(
            config("x", "OUTPUT__0", ONE_INSTANCE),
            "x: Tensor",
            "Tensor",
            "last = self.last\nself.last = x\nreturn torch.mul(last, 1)",
            {"last": torchscript_file.Tensor((1,), FLOAT)},
        ),
        "shared_keeper": TorchModel(
            config("x", "OUTPUT__0", shared),
            "x: Tensor",
            "Tensor",
            "last = self.last\nself.last = x\nreturn torch.mul(last, 1)",
            {"last": torchscript_file.Tensor((1,), FLOAT)},
        ),
        "gives_state": TorchModel(
            config("x", "OUTPUT__0", ONE_INSTANCE),
            "x: Tensor",
            "Tensor",
            "n = torch.add_(self.n, 1)\nreturn n",
            counter(),
        ),
        "writes_input": TorchModel(config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return torch.mul_(x, 2)"),
        "writes_entry": TorchModel(
            config("x y", "OUTPUT__0"), "d: Dict[str, Tensor]", "Tensor", 'return torch.mul_(d["x"], d["y"])'
        ),
        "gives_input": TorchModel(config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return x"),
    }


SMOOTH = "y = torch.add(torch.mul(x, x), 1)\nreturn torch.mul(torch.sigmoid(y), torch.tanh(y))"
FORK = (
    "def half() -> Tensor:\n  return torch.mul(x, 2)\n_0 = fork(half)\n_1 = fork(half)\n"
    "return torch.sub(torch.add(torch.wait(_0), torch.wait(_1)), torch.mul(x, 2))"
)


def settings() -> dict[str, TorchModel]:
    """Models whose settings show: in what they answer, in torch's own log, in the server's threads."""

    def model(body: str, *parameters: tuple[str, str], options: str = "") -> TorchModel:
        given = "".join(parameter(*each) for each in parameters)
        return TorchModel(config("x", "OUTPUT__0", options + given), "x: Tensor", "Tensor", body)

    asks_mode = "return torch.full([1], float(torch.is_inference(torch.clone(x))))"
    return {
        "kind_model": model("return torch.mul(x, 2)", options="instance_group [ { kind: KIND_MODEL count: 1 } ]\n"),
        "cache_cleaning": model("return torch.mul(x, 2)", ("ENABLE_CACHE_CLEANING", "true")),
        "without_cudnn": model("return torch.mul(x, 2)", ("DISABLE_CUDNN", "true")),
        "in_inference_mode": model(asks_mode),
        "out_of_inference_mode": model(asks_mode, ("INFERENCE_MODE", "false")),
        "plain": model(SMOOTH),
        "not_optimized": model(SMOOTH, ("DISABLE_OPTIMIZED_EXECUTION", "true")),
        "not_fused": model(SMOOTH, ("ENABLE_TENSOR_FUSER", "false")),
        "fused": model(SMOOTH, ("ENABLE_TENSOR_FUSER", "true")),
        "not_profiled": model(SMOOTH, ("ENABLE_JIT_PROFILING", "false")),
        "profiled": model(SMOOTH, ("ENABLE_JIT_PROFILING", "true")),
        "old_executor": model(SMOOTH, ("ENABLE_JIT_EXECUTOR", "false")),
        "new_executor": model(SMOOTH, ("ENABLE_JIT_EXECUTOR", "true"), ("ENABLE_JIT_PROFILING", "true")),
        "wide": model(
            f"wide = torch.repeat(x, [{WIDE}])\nwider = torch.mul(wide, 2)\n"
            "return torch.reshape(torch.sum(torch.add(wider, 1)), [1])"
        ),
        "three_threads": model("return torch.mul(x, 2)", ("INTRA_OP_THREAD_COUNT", "3")),
        "one_thread": model("return torch.mul(x, 2)"),
        "forks": model(FORK, ("INTER_OP_THREAD_COUNT", "3")),
        "forks_otherwise": model(FORK, ("INTER_OP_THREAD_COUNT", "2")),
    }


def failing() -> dict[str, TorchModel]:
    """Modules that load, and fail when they run."""
    return {
        "raises": TorchModel(
            config("x", "OUTPUT__0"),
            "x: Tensor",
            "Tensor",
            'if bool(torch.gt(torch.sum(x), 0)):\n  ops.prim.RaiseException("a positive sum is refused")\nelse:\n  pass\n'
            "return x",
        ),
        "hungry": TorchModel(
            config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return torch.zeros([1125899906842624])"
        ),
        "wrong_type": TorchModel(config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return torch.gt(x, 0)"),
        "wrong_index": TorchModel(config("x", "OUTPUT__3"), *DOUBLE),
        "scalar": TorchModel(config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return torch.sum(x)"),
        "no_tensor": TorchModel(config("x", "OUTPUT__0"), "x: Tensor", "int", "return torch.len(x)"),
        "unknown_to_tch": TorchModel(
            config("x", "OUTPUT__0"), "x: Tensor", "Tuple[Device, Tensor]", "return (ops.prim.device(x), x)"
        ),
        "no_key": TorchModel(config("x", "missing"), "x: Tensor", "Dict[str, Tensor]", 'return {"there": x}'),
    }


def broken() -> dict[str, TorchModel]:
    """Models that cannot be loaded."""
    on_gpu = "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]\n"
    return {
        "corrupt": TorchModel(config("x", "OUTPUT__0"), *DOUBLE),
        "unknown_operator": TorchModel(
            config("x", "OUTPUT__0"), "x: Tensor", "Tensor", "return ops.mine.secret(x)"
        ),
        "too_few": TorchModel(config("x", "OUTPUT__0"), "x: Tensor, y: Tensor", "Tensor", "return x"),
        "too_many": TorchModel(config("A__0 B__1", "OUTPUT__0"), *DOUBLE),
        "other_type": TorchModel(config("x", "OUTPUT__0", datatype="STRING"), *DOUBLE),
        "unusable": TorchModel(
            config("x", "OUTPUT__0"), "x: List[Tensor]", "Tensor", "return x[0]"
        ),
        "bad_parameter": TorchModel(config("x", "OUTPUT__0", parameter("INFERENCE_MODE", "maybe")), *DOUBLE),
        "nameless": TorchModel('platform: "pytorch_libtorch"\n', *DOUBLE),
        "on_gpu": TorchModel(config("x", "OUTPUT__0", on_gpu), *DOUBLE),
    }


def write(folder: pathlib.Path, chosen: dict[str, TorchModel]) -> pathlib.Path:
    """Writes a model repository."""
    for name, model in chosen.items():
        (folder / name / "1").mkdir(parents=True)
        content = model.file()
        (folder / name / "1" / "model.pt").write_bytes(content[:-100] if name == "corrupt" else content)
        (folder / name / "config.pbtxt").write_text(model.config)
    return folder
