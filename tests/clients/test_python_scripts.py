"""Python code that many models share: scripts that are back ends, and handlers of platforms."""

from __future__ import annotations

import json
import subprocess

import tritonclient.grpc as triton_grpc

from . import python_cases as cases
from .python_server import INTERPRETER, processes, write

# Answers with a text that its `initialize` makes.
SOURCE = """
import json
import os
import numpy as np
import triton_python_backend_utils as pb_utils
import beside

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "WAY", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "OUTPUT", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_max_batch_size(0)
        return config
    def initialize(self, args):
        %s
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([self.text], np.object_))])
                for _ in requests]
"""
SCRIPT = SOURCE % """
        folder = os.path.relpath(pb_utils.get_model_dir(), args["model_repository"])
        with open(os.path.join(pb_utils.get_model_dir(), "weights.txt")) as file:
            self.text = f"{beside.NAME} {args['model_name']} {folder} {file.read()}"
"""


def test_a_script_is_a_back_end_of_many_models(start, tmp_path):
    """`NAME/model.py` in the back-end directory, `backend: "NAME"` in their configurations."""
    script = tmp_path / "backends" / "scripted"
    script.mkdir(parents=True)
    (script / "model.py").write_text(SCRIPT)
    (script / "beside.py").write_text("NAME = 'beside'\n")
    repository = tmp_path / "repository"
    for model in ("first", "second"):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "1" / "weights.txt").write_text(f"weights of {model}")
        (repository / model / "config.pbtxt").write_text('backend: "scripted"\n')
    # Asked for by name it takes the place of one of ours.
    (repository / "second" / "config.pbtxt").write_text('backend: "repeat" runtime: "model.py"\n')
    (script.parent / "repeat").symlink_to(script)
    (repository / "third" / "1").mkdir(parents=True)
    (repository / "third" / "config.pbtxt").write_text('backend: "missing"\n')
    server = start(
        repository,
        INTERPRETER,
        f"--backend-directory={script.parent}",
        "--exit-on-error=false",
        "--strict-readiness=false",
    )
    for model in ("first", "second"):
        assert cases.way(server, model, "x")["OUTPUT"][2] == [f"beside {model} 1 weights of {model}"]
        assert server.get_json(f"/v2/models/{model}/config")["runtime"] == "model.py"
    assert "unable to find backend 'missing' for model 'third'" in server.log.read_text()
    assert {"first_0", "second_0"} <= processes(server).keys()


HANDLER = SOURCE % """
        config, folder = json.loads(args["model_config"]), pb_utils.get_model_dir()
        self.text = json.dumps([
            beside.NAME, config["platform"], config["default_model_filename"], args["model_name"],
            os.path.relpath(folder, args["model_repository"]), sorted(os.listdir(folder)),
        ])
"""
OWN = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(["own"], np.object_))])
                for _ in requests]
"""
TENSORS = """
input [{ name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }]
"""


def test_a_platform_handler_runs_models(start, binary, tmp_path):
    """`python/platform_handlers/NAME/model.py` in the back-end directory, for `backend: "python"` and
    `platform: "NAME"`."""
    handlers = tmp_path / "backends" / "python" / "platform_handlers"
    for platform in ("mine", "tensorflow_savedmodel"):
        (handlers / platform).mkdir(parents=True)
        (handlers / platform / "model.py").write_text(HANDLER)
        (handlers / platform / "beside.py").write_text(f"NAME = 'beside {platform}'\n")
    repository = tmp_path / "repository"

    def model(name: str, platform: str, tensors: str = "") -> None:
        (repository / name / "1").mkdir(parents=True)
        config = f'backend: "python"\nplatform: "{platform}"\n{tensors}'
        (repository / name / "config.pbtxt").write_text(config)

    def without(name: str) -> str:
        return str(repository / name / "1" / "model.py")

    model("weights", "mine")
    (repository / "weights" / "1" / "weights.txt").touch()
    model("beside_own", "mine")
    (repository / "beside_own" / "1" / "model.py").write_text("raise RuntimeError('the handler comes first')")
    model("saved", "tensorflow_savedmodel")
    (repository / "saved" / "1" / "model.savedmodel").mkdir()
    write(repository, "own", f'backend: "python"\nplatform: "unknown"\n{TENSORS}', OWN)
    model("neither", "unknown", TENSORS)
    model("outside", "../platform_handlers/mine", TENSORS)
    model("no_python", "tensorflow_graphdef", TENSORS)
    (repository / "no_python" / "1" / "model.graphdef").touch()
    flags = f"--backend-directory={tmp_path / 'backends'}"
    server = start(repository, INTERPRETER, flags, "--exit-on-error=false", "--strict-readiness=false")

    def told(name: str) -> list:
        return json.loads(cases.way(server, name, "x")["OUTPUT"][2][0])

    assert told("weights") == ["beside mine", "mine", "model.py", "weights", "1", ["weights.txt"]]
    assert told("beside_own") == ["beside mine", "mine", "model.py", "beside_own", "1", ["model.py"]]
    saved = ["beside tensorflow_savedmodel", "tensorflow_savedmodel", "model.savedmodel", "saved", "1"]
    assert told("saved") == [*saved, ["model.savedmodel"]]
    assert server.get_json("/v2/models/weights/config")["runtime"] == ""
    assert cases.way(server, "own", "x")["OUTPUT"][2] == ["own"]

    unknown = handlers / "unknown" / "model.py"
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        index = client.get_model_repository_index().models
    assert {each.name: each.reason for each in index if each.reason} == {
        "neither": f"Internal: Python model file not found in neither '{unknown}' nor '{without('neither')}'",
        "outside": f"Internal: Python model file not found in '{without('outside')}'",
        "no_python": "Internal: Model name must end with '.py'. Model name is \"model.graphdef\".",
    }
    warned = f"Unable to find model(handler) '{unknown}' for platform field 'unknown'"
    assert server.log.read_text().count(warned) == 1

    checked = subprocess.run([binary, "check", flags, repository], capture_output=True, text=True)
    missing = {line.partition(": ")[0] for line in checked.stdout.splitlines() if "unable to find" in line}
    assert missing == {without("neither"), without("outside")}, checked.stdout
    assert checked.returncode == 1
