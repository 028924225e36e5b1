"""The reference: the same models run by ONNX Runtime in this process, without a server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime

from connection import Label, Tensors


class DirectConnection:
    """A `connection.Connection` to the files of a model repository."""

    def __init__(self, repository: Path):
        self.repository = repository
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    def infer(self, model: str, inputs: Tensors, output: str) -> np.ndarray:
        return self._session(model).run([output], dict(inputs))[0]

    def infer_each(self, model: str, requests: Iterable[Tensors], output: str) -> list[np.ndarray]:
        return [self.infer(model, inputs, output) for inputs in requests]

    def classify(self, model: str, inputs: Tensors, output: str, count: int) -> list[list[Label]]:
        names = (self.repository / model / "labels.txt").read_text("utf-8").splitlines()
        rows = self.infer(model, inputs, output)
        best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
        return [[Label(float(row[i]), int(i), names[i]) for i in order] for row, order in zip(rows, best)]

    def _session(self, model: str) -> onnxruntime.InferenceSession:
        if model not in self.sessions:
            path = self.repository / model / "1" / "model.onnx"
            self.sessions[model] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return self.sessions[model]
