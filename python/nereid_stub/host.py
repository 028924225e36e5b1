"""Runs a model: loads it, and does what the server asks of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading

import triton_python_backend_utils as pb_utils

from . import native, requests, services, wire
from .channel import Channel
from .errors import told
from .requests import (
    REQUEST_RELEASE_RESCHEDULE,
    RESPONSE_COMPLETE_FINAL,
    InferenceResponse,
    InferenceResponseSender,
)

# What the server is told that the model has.
HAS_IS_READY = 1


class Refused(Exception):
    """The model did something that it may not; the text says what."""


class Host:
    """One model in this process."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._model = None
        self._name = ""
        self._path = ""
        self._module = None
        self._is_decoupled = False
        self._loop = None
        self._background: set = set()
        channel.on_ask_ready = self._is_ready
        requests.channel = channel

    def run(self) -> None:
        """Serves until the server has enough of it."""
        kind, body = self._channel.next_request()
        while kind == wire.START:
            self._start(json.loads(wire.Reader(body).text()))
            kind, body = self._turns().run()
        self._finalize()

    def _turns(self) -> native.Turns:
        """Runs the model's `execute` as the server wants it."""
        return native.Turns(
            self._channel,
            self._name,
            self._is_decoupled,
            self._model,
            self._cannot_execute,
            requests.executing,
            self._answer,
        )

    def _cannot_execute(self):
        raise Refused(f"Python model {self._path} does not implement `execute` method.")

    # --- Start

    def _start(self, told_by_server: dict) -> None:
        try:
            answer = self._begin(told_by_server)
            error = None
        except Exception as failure:
            answer, error = "", describe(failure)
        writer = wire.Writer()
        writer.begin(wire.STARTED)
        writer.pack(wire.FLAG, error is not None)
        writer.pack(wire.COUNT, HAS_IS_READY if hasattr(self._model, "is_ready") else 0)
        writer.text(answer if error is None else error)
        writer.end()
        self._channel.send(writer)

    def _begin(self, start: dict) -> str:
        """Loads the model; returns its completed configuration if that is all that is wanted, else nothing."""
        self._name = start["name"]
        self._path = start["model_path"]
        self._is_decoupled = InferenceResponseSender.is_decoupled = start["decoupled"]
        pb_utils.get_model_dir = lambda: start["model_dir"]
        # Other names for the same have been in use.
        pb_utils.ModelPath = self._path
        if self._module is None:
            # A process that has completed the configuration goes on as an instance.
            self._module = load(self._path, start["version"])
        if not hasattr(self._module, "TritonPythonModel"):
            raise Refused(f"'{self._path}' has no class TritonPythonModel")
        kind = self._module.TritonPythonModel
        if "complete" in start:
            return complete(kind, start["complete"], self._name)
        self._model = kind()
        requests.can_call = start.get("can_call_early", False)
        if hasattr(self._model, "initialize"):
            self._model.initialize(start["args"])
        requests.can_call = True
        if hasattr(self._model, "is_ready"):
            # Somebody must hear the question while the model is at work.
            threading.Thread(target=self._channel.read_for_all, name="nereid-read", daemon=True).start()
        return ""

    # --- Execute

    def _answer(self, taken: list, returned, failure) -> bytearray:
        """The frames that tell what came of an execution which did not simply give a response for each request:
        it returned something else, or it failed."""
        if failure is None:
            try:
                return self._told(taken, self._awaited(returned)).bytes
            except Exception as error:
                told_of = describe(error)
        else:
            # Not raised again here: it would refer to this call, which refers to it and to the requests, and
            # their memory would go back no sooner than the collector comes.
            told_of = describe(failure)
        writer = wire.Writer()
        writer.begin(wire.EXECUTED)
        writer.pack(wire.FLAG, 1)
        writer.text(told_of)
        writer.end()
        for request in taken:
            if request._sender is not None:
                # The server ends the request with the error.
                request._sender._is_closed = True
        return writer.bytes

    def _awaited(self, returned):
        """What `execute` gives, which may be a coroutine."""
        if type(returned) is list or returned is None:
            return returned
        # Most models need it never, and it takes a while.
        import asyncio

        if not asyncio.iscoroutine(returned):
            return returned
        this = threading.get_ident()
        requests.executing.add(this)
        try:
            return self._await(returned, asyncio)
        finally:
            requests.executing.discard(this)

    def _await(self, coroutine, asyncio):
        """Runs a coroutine on the model's event loop; that of a decoupled model goes on by itself."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="nereid-async", daemon=True)
            thread.start()
            if not self._is_decoupled:
                # Nothing runs on the loop but what `execute` waits for.
                requests.executing.add(thread.ident)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if not self._is_decoupled:
            failure = future.exception()
            if failure is not None:
                raise Refused(told(failure))
            return future.result()

        def ended(done):
            self._background.discard(done)
            if done.exception() is not None:
                services.log(
                    f"Failed to process the request(s) for model '{self._name}', message: {told(done.exception())}",
                    services.ERROR,
                )

        self._background.add(future)
        future.add_done_callback(ended)
        return None

    def _told(self, taken: list, returned) -> wire.Writer:
        """What `execute` returned, and that it has returned, in frames."""
        writer = wire.Writer()
        if returned is not None:
            self._check(taken, returned)
        # Before the responses, so that the execution is counted when their clients have them.
        self._let_go(writer, taken, returned)
        if returned is not None:
            for request, response in zip(taken, returned):
                if response is not None and request._sender is not None:
                    request._sender.note(response, RESPONSE_COMPLETE_FINAL)
            writer.bytes += native.responses_frame(taken, returned, self._channel.arena.memory, self._channel.take)
        return writer

    def _let_go(self, writer: wire.Writer, taken: list, returned) -> None:
        """Tells which requests nothing answers any more, and which are to be scheduled again."""
        again, ended = [], []
        for request in taken:
            if request._release_flags == REQUEST_RELEASE_RESCHEDULE:
                again.append(request._number)
                if request._sender is not None:
                    # The next execution has one of its own.
                    request._sender._is_closed = True
        for index, request in enumerate(taken):
            has_response = returned is not None and returned[index] is not None
            if not has_response and request._sender is None and request._number not in again:
                ended.append(request._number)
        writer.begin(wire.EXECUTED)
        writer.pack(wire.FLAG, 0)
        for numbers in (ended, again):
            writer.pack(wire.COUNT, len(numbers))
            for number in numbers:
                writer.pack(wire.NUMBER, number)
        writer.end()

    def _check(self, taken: list, returned) -> None:
        if self._is_decoupled:
            raise Refused(
                f"Python model '{self._name}' is using the decoupled mode and the execute function must return None."
            )
        if not isinstance(returned, list):
            raise Refused(f"Expected a list in the execute return, found type '{type(returned)}'.")
        if len(returned) != len(taken):
            raise Refused(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                f"InferenceRequest(s) size is:{len(taken)}, and InferenceResponse(s) size is:{len(returned)}\n"
            )
        for request, response in zip(taken, returned):
            if response is not None and request._release_flags == REQUEST_RELEASE_RESCHEDULE:
                raise Refused(
                    "Expected a None object in the execute function return list for reschduled request, found type "
                    f"'{type(response)}'."
                )
            if response is not None and not isinstance(response, InferenceResponse):
                raise Refused(
                    "Expected an 'InferenceResponse' object in the execute function return list, found type "
                    f"'{type(response)}'."
                )

    # --- The rest

    def _is_ready(self, reader: wire.Reader) -> None:
        (number,) = reader.unpack(wire.NUMBER)

        def answer():
            try:
                is_ready = bool(self._model.is_ready())
            except Exception as failure:
                services.log(f"is_ready of model '{self._name}' failed: {told(failure)}", services.ERROR)
                is_ready = False
            writer = wire.Writer()
            writer.begin(wire.IS_READY)
            writer.pack(wire.NUMBER, number)
            writer.pack(wire.FLAG, is_ready)
            writer.end()
            self._channel.send(writer)

        # It may itself ask the server, so whoever reads must not be kept.
        threading.Thread(target=answer, daemon=True).start()

    def _finalize(self) -> None:
        requests.can_call = False
        if self._model is not None and hasattr(self._model, "finalize"):
            try:
                self._model.finalize()
            except Exception as failure:
                services.log(told(failure), services.ERROR)
        self._model = None
        writer = wire.Writer()
        writer.begin(wire.FINALIZED)
        writer.end()
        self._channel.send(writer)


def describe(failure: Exception) -> str:
    """What the client is told of a failure."""
    return str(failure) if isinstance(failure, Refused) else told(failure)


def load(path: str, version: str):
    """The module of a model: `{version}.model`, so that it can import what lies beside it, both by its name
    and as `.name`. A script that many models run has no version."""
    folder, file = os.path.split(path)
    name, suffix = os.path.splitext(file)
    if suffix != ".py":
        raise Refused(f"Model name must end with '.py'. Model name is \"{file}\".")
    parent, package = os.path.split(folder)
    sys.path += [folder, parent] if version else [folder]
    if version and package == version and "." not in name:
        return importlib.import_module(f"{version}.{name}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def complete(kind, config: str, name: str) -> str:
    """The configuration as the model completes it."""
    completed = pb_utils.ModelConfig(config)
    if hasattr(kind, "auto_complete_config"):
        completed = kind.auto_complete_config(completed)
    if not isinstance(completed, pb_utils.ModelConfig):
        raise Refused(f"auto_complete_config function in model '{name}' must return a valid pb.ModelConfig object.")
    return json.dumps(completed.as_dict())


def ignore_signals() -> None:
    """What ends the server is the server's to hear: it ends this process when the last request is answered."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
