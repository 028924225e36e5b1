"""What the Python models of `tests/python_models` are asked, the real Triton and Nereid alike.

    build/venv/bin/python -m tests.clients.python_cases

asks the real one and writes its answers down.
"""

from __future__ import annotations

import json
import pathlib
import queue
import shutil
import sys
import tempfile
import uuid

import numpy as np
import tritonclient.grpc as triton_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "peer"))

import python_backend  # noqa: E402
import servers  # noqa: E402

MODELS = ROOT / "tests" / "python_models"
ANSWERS = pathlib.Path(__file__).with_name("python_answers.json")
# How long an answer may take.
WAIT_SECONDS_MAX = 60
# How long one of the real server's that may never come is waited for, and how often it is asked for.
AGAIN_SECONDS_MAX = 10
AGAIN_TRIES = 4

ERRORS = (
    "plain",
    "raise",
    "not a list",
    "too many",
    "no response",
    "unknown output",
    "one more output",
    "no output",
    "other type",
    "other shape",
    "response and error",
    "error",
    "error UNKNOWN",
    "error INTERNAL",
    "error NOT_FOUND",
    "error INVALID_ARG",
    "error UNAVAILABLE",
    "error UNSUPPORTED",
    "error ALREADY_EXISTS",
    "error CANCELLED",
    "empty name",
    "bad array",
    "bad type",
    "model exception",
    "nested",
    "sender",
    "sender twice",
    "sender flags",
    "sender nothing",
    "sender final first",
    "sender and return",
)
CALLS = (
    "once",
    "one_output",
    "version",
    "loop",
    "condition",
    "unknown_model",
    "unknown_version",
    "unknown_output",
    "wrong_shape",
    "failing",
    "decoupled",
    "decoupled_error",
    "decoupled_twice",
    "decoupled_as_one",
    "one_as_decoupled",
    "large",
)
COROUTINES = ("many", "decoupled", "sleep")
AGAIN = (1, 2, 5)
# Sequence, flags, what it counts, and the outputs asked for by name. The real server gives such models no state
# but the one that a sequence begins with.
STATES = (
    (1, "s", 1, ()),
    (1, "", 2, ()),
    (2, "s", 3, ()),
    (1, "", 0, ()),
    (2, "e", 4, ("TOLD",)),
    (1, "", 5, ("TOLD", "COUNTED")),
    (1, "e", 6, ()),
    (1, "", 7, ()),
)
# An ensemble whose steps leave out the output of an input that is left out.
LEFT_OUT = ("given", "given_once", "given_twice", "given_nested", "given_needed")
# What a model finds in the module and in its classes.
NAMES = "describe: names"
REPEATS = ([1, 2, 3], [1, 13, 3], [], [-1])


def copy_models(folder: pathlib.Path) -> pathlib.Path:
    """A repository with all models."""
    return pathlib.Path(shutil.copytree(MODELS, folder, dirs_exist_ok=True))


def tensor(name: str, array: np.ndarray) -> triton_grpc.InferInput:
    """An input."""
    types = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}
    made = triton_grpc.InferInput(name, list(array.shape), types[str(array.dtype)])
    made.set_data_from_numpy(array)
    return made


def read(result) -> dict:
    """The outputs of an answer, by name, in their order."""
    outputs = {}
    for output in result.get_response().outputs:
        values = result.as_numpy(output.name)
        if values.dtype == np.object_:
            values = np.vectorize(lambda text: text.decode(), otypes=[object])(values)
        outputs[output.name] = [output.datatype, list(output.shape), values.tolist()]
    return outputs


def infer(server, model: str, options: dict | None = None, **inputs) -> dict:
    """The answer of a model, or its error."""
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        try:
            tensors = [tensor(name, array) for name, array in inputs.items()]
            return read(client.infer(model, tensors, **{"client_timeout": WAIT_SECONDS_MAX, **(options or {})}))
        except triton_grpc.InferenceServerException as error:
            return {"error": error.message(), "status": str(error.status())}


def way(server, model: str, text: str) -> dict:
    """The answer of a model that is told what to do."""
    return infer(server, model, WAY=np.array([text.encode()], np.object_))


def in_sequence(server, model: str, sequence: int, flags: str, value: int, outputs: tuple[str, ...]) -> dict:
    """The answer to a request of a sequence."""
    options = {"sequence_id": sequence, "sequence_start": "s" in flags, "sequence_end": "e" in flags}
    if outputs:
        options["outputs"] = [triton_grpc.InferRequestedOutput(name) for name in outputs]
    return infer(server, model, options, IN=np.array([[value]], np.int32))


def stream(server, model: str, until: int = 0, seconds_max: float = WAIT_SECONDS_MAX, **inputs) -> list:
    """The answers of a decoupled model, up to the last, or to as many errors as `until`; each is waited for."""
    answers: queue.Queue = queue.Queue()
    seen = []
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        tensors = [tensor(name, array) for name, array in inputs.items()]
        client.async_stream_infer(model, tensors, enable_empty_final_response=True)
        while True:
            answer = answers.get(timeout=seconds_max)
            if isinstance(answer, Exception):
                seen.append({"error": answer.message()})
                until -= 1
                if until == 0:
                    return seen
                continue
            seen.append(read(answer))
            if answer.get_response().parameters["triton_final_response"].bool_param:
                return seen


def ask_all(server, folder: pathlib.Path, again=stream) -> dict:
    """All answers, by the question. Places in the repository are made the same everywhere. The model whose
    requests run again is asked by `again`."""
    answers = {f"errors: {text}": way(server, "errors", text) for text in ERRORS}
    answers |= {f"bls: {text}": way(server, "bls", text) for text in CALLS}
    answers |= {f"bls_async: {text}": way(server, "bls_async", text) for text in COROUTINES}
    for values in REPEATS:
        # A request whose execution failed has no other end than its error.
        until = int(values[:1] == [-1])
        answers[f"repeat: {values}"] = stream(server, "repeat", until, IN=np.array(values, np.int32))
    for count in AGAIN:
        answers[f"again: {count}"] = again(server, "again", IN=np.array([[count]], np.int32))
        answers[f"again_once: {count}"] = infer(server, "again_once", IN=np.array([count], np.int32))
    for each in STATES:
        answers[f"state: {each}"] = in_sequence(server, "state", *each)
    pair = {"INPUT0": np.array([1, 2], np.float32), "INPUT1": np.array([3], np.float32)}
    for model in LEFT_OUT:
        for count in (1, 2):
            for outputs in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT0", "OUTPUT1"], []):
                options = {"outputs": [triton_grpc.InferRequestedOutput(name) for name in outputs] or None}
                given = dict(list(pair.items())[:count])
                answers[f"{model}: {[*given, *outputs]}"] = infer(server, model, options, **given)
    rows = np.array([[1, 2], [3, 5]], np.float32)
    answers["add_sub"] = infer(server, "add_sub", INPUT0=rows, INPUT1=rows[::-1].copy())
    texts = np.array([[b"abc", "été".encode(), b"", b"longer"]], np.object_)
    answers["strings"] = infer(server, "strings", TEXT=texts)
    answers["completed"] = infer(server, "completed", X=np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32))
    told = json.loads(infer(server, "describe", X=np.array([1, 2], np.float32))["TOLD"][2][0])
    # Later releases have others beside these.
    answers[NAMES] = {"pb_utils": told.pop("names"), **told.pop("methods")}
    answers["describe"] = told
    told = json.loads(infer(server, "helpers", X=np.array([1, 2], np.float32))["TOLD"][2][0])
    answers |= {f"helpers: {name}": each for name, each in told.items()}
    config = server.get_json("/v2/models/completed/config")
    answers["completed: config"] = config
    return json.loads(json.dumps(answers).replace(str(folder), "REPOSITORY"))


def ask_patiently(server, model: str, **inputs) -> list:
    """What `stream` gives, of the real server. The first request that it runs again it now and then hands on
    without its correlation id; the model fails, and the request is never answered."""
    for _ in range(AGAIN_TRIES):
        try:
            return stream(server, model, seconds_max=AGAIN_SECONDS_MAX, **inputs)
        except queue.Empty:
            continue
    raise TimeoutError(f"the real server has left '{model}' without an answer {AGAIN_TRIES} times")


def ask_the_real_server(temporary: pathlib.Path) -> dict:
    """All its answers; it has to be installed."""
    folder = copy_models(temporary / "repository")
    prefix = f"nereid_python_{uuid.uuid4().hex}_"
    flags = (f"--backend-config=python,shm-region-prefix-name={prefix}", "--exit-timeout-secs=1")
    server = servers.Server("triton-python", servers.TRITON, folder, flags, temporary / "log")
    try:
        with server:
            return ask_all(server, folder, ask_patiently)
    finally:
        # With requests that it has not answered it leaves them.
        for left in pathlib.Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink()


def main() -> None:
    """Writes down what the real server answers."""
    if why := python_backend.prepare():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as temporary:
        answers = ask_the_real_server(pathlib.Path(temporary))
    lines = (f"{json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}" for name, answer in answers.items())
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
