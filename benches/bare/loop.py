"""A model run bare: ONNX Runtime in a loop, with its input and output in place beforehand.

A program of its own (`loop.py MODEL SECONDS SIZE...`), so that it has a process like the server's to itself.
Prints, as JSON, the seconds that a run takes at each batch size: on the clock (`wall`) and of the CPU (`cpu`).
"""

from __future__ import annotations

import json
import sys
import time

import numpy
import onnxruntime

ROUNDS = 3
WARM_UP_RUNS = 2


def main(model: str, seconds: float, sizes: list[int]) -> None:
    """Runs the model at each size in turn, several times over, for so many seconds in all."""
    options = onnxruntime.SessionOptions()
    # What the server takes when a configuration says nothing else.
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    bindings = {size: bind(session, size) for size in sizes}
    for binding in bindings.values():
        for _ in range(WARM_UP_RUNS):
            session.run_with_iobinding(binding)
    spent = {size: [0, 0.0, 0.0] for size in sizes}
    for _ in range(ROUNDS):
        for size, binding in bindings.items():
            runs, wall, cpu = repeat(session, binding, seconds / ROUNDS / len(sizes))
            spent[size] = [a + b for a, b in zip(spent[size], (runs, wall, cpu))]
    print(json.dumps({size: {"wall": wall / runs, "cpu": cpu / runs} for size, (runs, wall, cpu) in spent.items()}))


def bind(session: onnxruntime.InferenceSession, size: int) -> onnxruntime.IOBinding:
    """The input and output of a batch of this size, allocated once."""
    binding = session.io_binding()
    for tensor, put in ((session.get_inputs()[0], binding.bind_ortvalue_input),
                        (session.get_outputs()[0], binding.bind_ortvalue_output)):
        values = numpy.random.default_rng(1).random((size, *tensor.shape[1:]), dtype=numpy.float32)
        put(tensor.name, onnxruntime.OrtValue.ortvalue_from_numpy(values))
    return binding


def repeat(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, seconds: float):
    """How many runs fit, and what they took."""
    run = session.run_with_iobinding
    runs, cpu, begun = 0, time.process_time(), time.perf_counter()
    while True:
        run(binding)
        runs += 1
        wall = time.perf_counter() - begun
        if wall >= seconds:
            return runs, wall, time.process_time() - cpu


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), [int(each) for each in sys.argv[3:]])
