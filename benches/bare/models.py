"""Makes the models of the bare bench: one of ResNet-50's shape and a small perceptron.

A program of its own (`models.py FOLDER`), because the package that it needs is installed for it alone,
into `build/bench/onnx`. Weights are random, scaled such that no layer overflows: how long a run takes does
not depend on what a model has learned.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "build" / "bench" / "onnx"
SCHEDULING = "dynamic_batching { }"
# Identity takes the tensors that the perceptron takes, to be compared with it.
MLP_INPUT = 64
TORCH_DIMS = (3, 224, 224)
TORCH_BATCH_MAX = 8
TORCH_WARM_UP_RUNS = 4
TORCH_LOOP = HERE.parents[1] / "build" / "pytorch" / "target" / "release" / "examples" / "bare"
TORCH_MODEL = HERE.parents[1] / "build" / "examples" / "torchscript" / "image_classifier_torch" / "1" / "model.pt"
MLP_HIDDEN = 256
MLP_OUTPUT = 10


def write_repository(folder: pathlib.Path) -> pathlib.Path:
    """The repository with `resnet50`, `mlp` and two of `identity`; what is up to date is kept."""
    requirements = HERE / "requirements.txt"
    sources = (requirements.read_bytes(), pathlib.Path(__file__).read_bytes(), sys.version.encode())
    stamp = hashlib.sha256(b"".join(sources)).hexdigest()
    done = folder.parent / f"{folder.name}.stamp"
    if done.is_file() and done.read_text() == stamp:
        return folder
    for each in (folder, PACKAGE):
        shutil.rmtree(each, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", "--target", str(PACKAGE), "-r", str(requirements)]
    subprocess.run(pip, check=True)
    subprocess.run([sys.executable, __file__, str(folder)], check=True)
    done.write_text(stamp)
    return folder


def add_torch(folder: pathlib.Path, name: str) -> str | None:
    """Adds the TorchScript model to the repository.

    Returns why that cannot be, if it cannot.
    """
    shutil.rmtree(folder / name, ignore_errors=True)
    backends = os.environ.get("NEREID_BACKEND_DIR") or os.path.expanduser("~/.local/share/nereid/backends")
    bridge = pathlib.Path(backends, "pytorch", "libnereid_pytorch.so")
    for needed, maker in ((bridge, "backend-pytorch"), (TORCH_LOOP, "backend-pytorch"), (TORCH_MODEL, "examples")):
        if not needed.is_file():
            return f"there is no {needed} (`make {maker}`)"
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.pt").symlink_to(TORCH_MODEL.resolve())
    dims = ", ".join(str(each) for each in TORCH_DIMS)
    # Torch optimises a module in its first runs for each batch size; the bare loop does not count these either.
    sample = f'inputs {{ key: "INPUT0" value {{ data_type: TYPE_FP32 dims: [ {dims} ] random_data: true }} }}'
    warm_ups = (
        f'model_warmup {{ name: "{size}" batch_size: {size} count: {TORCH_WARM_UP_RUNS} {sample} }}'
        for size in range(1, TORCH_BATCH_MAX + 1)
    )
    config(folder / name, "pytorch", TORCH_BATCH_MAX, dims, "1000", "\n".join([SCHEDULING, *warm_ups]))
    return None


def main(folder: pathlib.Path) -> None:
    """Writes the models and their configurations."""
    sys.path.insert(0, str(PACKAGE))
    import onnx

    for name, model in (("resnet50", resnet50()), ("mlp", mlp())):
        onnx.checker.check_model(model)
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / name / "1" / "model.onnx")
    for name in ("identity", "identity_unbatched"):
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
    config(folder / "resnet50", "onnxruntime", 8, "3, 224, 224", "1000")
    config(folder / "mlp", "onnxruntime", 64, str(MLP_INPUT), str(MLP_OUTPUT))
    config(folder / "identity", "identity", 64, str(MLP_INPUT), str(MLP_INPUT))
    config(folder / "identity_unbatched", "identity", 64, str(MLP_INPUT), str(MLP_INPUT), scheduling="")


def config(
    folder: pathlib.Path, backend: str, batch_max: int, dims: str, output_dims: str, scheduling: str = SCHEDULING
) -> None:
    """A configuration with one tensor each way, batched unless told otherwise."""
    (folder / "config.pbtxt").write_text(
        f'backend: "{backend}"\nmax_batch_size: {batch_max}\n{scheduling}\n'
        f'input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {dims} ] }}]\n'
        f'output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {output_dims} ] }}]\n'
    )


def resnet50():
    """The nodes of `light_resnet50.onnx`, with weights in place of what fills them at run time."""
    import numpy
    import onnx
    from onnx import numpy_helper

    light = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx"
    model = onnx.load(light)
    graph = model.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    generator = numpy.random.default_rng(50)
    for node in fills:
        shape = tuple(int(each) for each in constants[node.input[0]])
        name = node.output[0]
        if len(shape) > 1:
            values = generator.standard_normal(shape) * (2 / numpy.prod(shape[1:])) ** 0.5
        elif name in variances:
            values = numpy.ones(shape)
        else:
            values = generator.uniform(0.1, 0.3, shape)
        graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(values.astype(numpy.float32), name))
    # The flattening before the last layer is to keep whatever batch comes.
    reshape = next(node for node in graph.node if node.op_type == "Reshape")
    flat = constants[reshape.input[1]].copy()
    flat[0] = -1
    for each in list(graph.initializer):
        unused = not any(each.name in node.input for node in graph.node)
        if unused or each.name == reshape.input[1]:
            graph.initializer.remove(each)
    graph.initializer.append(numpy_helper.from_array(flat, reshape.input[1]))
    image, classes = graph.input[0].name, graph.output[0].name
    del graph.input[1:]
    del graph.value_info[:]
    for tensor in (graph.input[0], graph.output[0]):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.input[0].name, graph.output[0].name = "INPUT0", "OUTPUT0"
    for node in graph.node:
        node.input[:] = ["INPUT0" if each == image else each for each in node.input]
        node.output[:] = ["OUTPUT0" if each == classes else each for each in node.output]
    # From version 4 of the format an initializer need not be an input too.
    model.ir_version = 8
    return model


def mlp():
    """64 → 256 → 10, with a ReLU between."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    generator = numpy.random.default_rng(64)

    def weights(name: str, *shape: int):
        values = generator.standard_normal(shape) / MLP_INPUT**0.5
        return numpy_helper.from_array(values.astype(numpy.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["INPUT0", "w1", "b1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["rectified"]),
            helper.make_node("Gemm", ["rectified", "w2", "b2"], ["OUTPUT0"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["batch", MLP_INPUT])],
        [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["batch", MLP_OUTPUT])],
        [
            weights("w1", MLP_INPUT, MLP_HIDDEN),
            weights("b1", MLP_HIDDEN),
            weights("w2", MLP_HIDDEN, MLP_OUTPUT),
            weights("b2", MLP_OUTPUT),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
