"""A client of the ring that was written from `docs/src/ring.md` alone: each number is one that stands there."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time

import ml_dtypes  # noqa: F401  (makes bfloat16 a type of numpy's)
import numpy as np
import pytest

from . import models, triton

MAGIC = b"NRDRING\n"
HELLO = struct.Struct("<8sIIQIII12x")
WELCOME = struct.Struct("<8sIIQII16x")
HEADER = struct.Struct("<8sIIQIIQQQQ")
SUBMISSION = struct.Struct("<QI4xQQ")
COMPLETION = struct.Struct("<QIIQQ")
REQUEST = struct.Struct("<IIQQQQQQHHHHHHH2x")
TENSOR = struct.Struct("<QQHBB4x")
WANTED = struct.Struct("<QQHBxI")
PARAMETER = struct.Struct("<HBxIq")
ANSWER = struct.Struct("<IIqHHHHI4x")

SUBMISSIONS_PUT, SUBMISSIONS_TAKEN, COMPLETIONS_PUT, COMPLETIONS_TAKEN, SERVERS_BELL, CLIENTS_BELL = range(128, 512, 64)
TYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16"]
RUN, GIVE_UP = 1, 2
NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE, CANCELLED = 3, 4, 5, 8
# Where in the arena things lie: descriptions, inputs, the area, places of the client's choice.
DESCRIPTION, DATA, AREA, PLACE = 0, 2048, 4096, 9000
AREA_BYTES = 4096
WAIT_SECONDS_MAX = 60


def padded(record: bytes) -> bytes:
    return record + bytes(-len(record) % 8)


def tensor(name: bytes, datatype: str, dims: list[int], length: int, at: int = DATA) -> bytes:
    head = TENSOR.pack(at, length, len(name), TYPES.index(datatype) + 1, len(dims))
    return padded(head + struct.pack(f"<{len(dims)}q", *dims) + name)


def wanted(name: bytes, place: tuple[int, int] | None = None, classes: int = 0) -> bytes:
    return padded(WANTED.pack(*(place or (0, 0)), len(name), place is not None, classes) + name)


def parameter(name: bytes, kind: int, value: int = 0, text: bytes = b"") -> bytes:
    return padded(PARAMETER.pack(len(name), kind, len(text), value) + name + text)


def request(
    model: bytes,
    inputs: list[bytes],
    outputs: list[bytes] = (),
    parameters: list[bytes] = (),
    *,
    version: bytes = b"",
    id: bytes = b"",
    flags: int = 0,
    sequence: int | bytes = 0,
    deadline_us: int = 0,
) -> bytes:
    named = sequence if isinstance(sequence, bytes) else b""
    names = padded(model + version + id + named)
    rest = b"".join([names, *inputs, *outputs, *parameters])
    lengths = [len(each) for each in (model, version, id, named, inputs, outputs, parameters)]
    number = 0 if named else sequence
    return REQUEST.pack(72 + len(rest), flags | 4 * bool(named), number, 0, 0, deadline_us, AREA, AREA_BYTES, *lengths) + rest


class Client:
    """A connection with five places for submissions, three for completions and an arena of 10,000 bytes."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_SECONDS_MAX)
        self.socket.connect(str(path))
        self.socket.sendall(HELLO.pack(MAGIC, 1, 48, 10_000, 5, 3, 0))
        welcome, [descriptor], _, _ = socket.recv_fds(self.socket, 48, 1)
        magic, version, size, total, refusal, flags = WELCOME.unpack(welcome)
        assert (magic, version, size, refusal, flags) == (MAGIC, 1, 48, 0, 0)
        self.memory = mmap.mmap(descriptor, total)
        os.close(descriptor)
        # A page for the header, one for each ring, and the arena in whole pages.
        places = (4096, 8192, 12_288)
        assert HEADER.unpack_from(self.memory) == (MAGIC, 1, 4096, 12_288 + 12_288, 8, 4, *places, 12_288)
        self.submissions, self.completions, self.arena = places
        self.put = self.taken = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def word(self, at: int) -> int:
        return struct.unpack_from("<I", self.memory, at)[0]

    def write(self, at: int, data: bytes) -> None:
        self.memory[self.arena + at : self.arena + at + len(data)] = data

    def read(self, at: int, length: int) -> bytes:
        return self.memory[self.arena + at : self.arena + at + length]

    def submit(self, token: int, description: bytes = b"", operation: int = RUN) -> None:
        self.write(DESCRIPTION, description)
        entry = SUBMISSION.pack(token, operation, DESCRIPTION, len(description))
        at = self.submissions + 32 * (self.put % 8)
        self.memory[at : at + 32] = entry
        self.put += 1
        struct.pack_into("<I", self.memory, SUBMISSIONS_PUT, self.put)
        # Python has no fence, without which the bell may not be looked at: one ring too many does no harm.
        self.socket.sendall(b"!")

    def complete(self) -> tuple[int, int, int, dict | None]:
        """The next completion: its token, status and flags, and the answer if there is one."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while self.word(COMPLETIONS_PUT) == self.taken:
            assert time.monotonic() < deadline, "no completion"
            time.sleep(0.001)
        token, status, flags, at, length = COMPLETION.unpack_from(self.memory, self.completions + 32 * (self.taken % 4))
        answer = self.answer(at, length) if length else None
        self.taken += 1
        struct.pack_into("<I", self.memory, COMPLETIONS_TAKEN, self.taken)
        self.socket.sendall(b"!")
        return token, status, flags, answer

    def answer(self, start: int, length: int) -> dict:
        assert start % 8 == 0 and AREA <= start and start + length <= AREA + AREA_BYTES
        record = self.read(start, length)
        size, status, version, model, id, outputs, parameters, message = ANSWER.unpack_from(record)
        assert size == length
        words = record[32 : 32 + model + id + message]
        found = {"status": status, "version": version, "model": words[:model], "id": words[model : model + id]}
        found |= {"message": words[model + id :].decode(), "outputs": {}}
        at = 32 + len(padded(words))
        for _ in range(outputs):
            data, bytes_, name, datatype, rank = TENSOR.unpack_from(record, at)
            dims = struct.unpack_from(f"<{rank}q", record, at + 24)
            begins = at + 24 + 8 * rank
            name = record[begins : begins + name]
            found["outputs"][name] = (TYPES[datatype - 1], list(dims), data, self.read(data, bytes_))
            at = begins + len(padded(name))
        assert parameters > 0 or at == length
        return found

    def ask(self, *arguments, token: int = 7, **options) -> dict:
        """The answer to a request that succeeds."""
        self.submit(token, request(*arguments, **options))
        got, status, flags, answer = self.complete()
        assert (got, status, flags) == (token, 0, 1), answer
        return answer


@pytest.fixture
def client(with_ring):
    with Client(with_ring[1]) as client:
        yield client


def test_a_request_and_its_answer(client):
    """A chosen place, a name for the request, a version, and parameters of each kind."""
    data = np.arange(16, dtype=np.float32).tobytes()
    client.write(DATA, data)
    client.write(PLACE, bytes([9]) * 80)
    given = [tensor(b"INPUT0", "FP32", [16], 64)]
    kinds = [(1, 1, b""), (2, -5, b""), (3, 5, b""), (4, 0, b""), (5, 0, b"any text")]
    own = [parameter(b"own%d" % kind, kind, value, text) for kind, value, text in kinds]
    answer = client.ask(b"fp32", given, [wanted(b"OUTPUT0", (PLACE, 70))], own, version=b"1", id=b"name")
    assert answer["outputs"] == {b"OUTPUT0": ("FP32", [16], PLACE, data)}
    assert (answer["model"], answer["version"], answer["id"], answer["message"]) == (b"fp32", 1, b"name", "")
    assert client.read(PLACE + 64, 16) == bytes([9]) * 16
    assert (client.word(SUBMISSIONS_TAKEN), client.word(COMPLETIONS_PUT)) == (1, 1)
    # Round both rings: an output without a place lies in the area, at a multiple of 64.
    for token in range(20):
        [(datatype, dims, at, got)] = client.ask(b"fp32", given, token=token)["outputs"].values()
        assert (datatype, dims, at, got) == ("FP32", [16], AREA, data)


@pytest.mark.parametrize("datatype", TYPES)
def test_types_have_their_numbers(client, datatype):
    array = triton.values(datatype, (4,))
    data = array.astype(models.TYPES[datatype][1]).tobytes()
    if datatype == "BYTES":
        data = b"".join(len(text).to_bytes(4, "little") + text for text in array)
    client.write(DATA, data)
    answer = client.ask(datatype.lower().encode(), [tensor(b"INPUT0", datatype, [4], len(data))])
    assert answer["outputs"][b"OUTPUT0"][:2] == (datatype, [4])
    assert answer["outputs"][b"OUTPUT0"][3] == data


def test_classes_are_told_instead_of_the_tensor(client):
    client.write(DATA, np.array([0.1, 0.7, 0.2], np.float32).tobytes())
    answer = client.ask(b"labels", [tensor(b"INPUT0", "FP32", [1, 3], 12)], [wanted(b"OUTPUT0", classes=1)])
    datatype, dims, _, got = answer["outputs"][b"OUTPUT0"]
    assert (datatype, dims, got[4:]) == ("BYTES", [1, 1], b"0.700000:1:bee")


@pytest.mark.parametrize(("model", "sequence"), [(b"sequence_direct", 5 << 40), (b"sequence_text", b"from the layout")])
def test_sequences_have_a_number_or_a_name(client, model, sequence):
    client.write(DATA, struct.pack("<f", 2.0))
    for flags, start, end in [(1, 1, 0), (0, 0, 0), (2, 0, 1)]:
        outputs = client.ask(model, [tensor(b"INPUT0", "FP32", [1, 1], 4)], sequence=sequence, flags=flags)["outputs"]
        told = [struct.unpack("<i", outputs[b"OUTPUT%d" % number][3])[0] for number in (1, 3)]
        assert told == [start, end]
        name = outputs[b"OUTPUT4"][3]
        assert name == (sequence.to_bytes(8, "little") if isinstance(sequence, int) else len(sequence).to_bytes(4, "little") + sequence)


def test_several_answers_come_one_behind_the_other(client):
    values, none = np.arange(3, dtype=np.int32), np.zeros(3, np.uint32)
    client.write(DATA, values.tobytes() + bytes(52) + none.tobytes() + bytes(52) + bytes(4))
    given = [tensor(b"IN", "INT32", [3], 12), tensor(b"DELAY", "UINT32", [3], 12, DATA + 64), tensor(b"WAIT", "UINT32", [1], 4, DATA + 128)]
    client.submit(3, request(b"repeat", given, [wanted(b"OUT")]))
    found, flags, end = [], 0, 0
    while not flags & 1:
        token, status, flags, answer = client.complete()
        assert (token, status) == (3, 0)
        if answer:
            [(_, _, at, got)] = answer["outputs"].values()
            assert at >= end, "what has been written is not written again"
            end = at + len(got)
            found.append(struct.unpack("<i", got)[0])
    assert found == [0, 1, 2]


def test_failures_have_their_numbers(client):
    client.write(DATA, bytes(64))
    given = [tensor(b"INPUT0", "FP32", [16], 64)]
    patient = [tensor(b"INPUT0", "FP32", [1, 16], 64)]
    for description, expected, words in [
        (request(b"absent", given), NOT_FOUND, "'absent' is not found"),
        (request(b"fp32", [tensor(b"INPUT0", "FP32", [16], 60)]), INVALID_ARGUMENT, "Expected 64, got 60"),
        (request(b"fp32", [tensor(b"INPUT0", "FP32", [16], 64, 1 << 40)]), INVALID_ARGUMENT, "within the arena"),
        (request(b"patient", patient, deadline_us=1000), UNAVAILABLE, "deadline expired"),
        (request(b"fp32", given)[:-8], INVALID_ARGUMENT, "a request's description"),
        (request(b"fp32", given, [], [parameter(b"priority", 3, 1)]), INVALID_ARGUMENT, "'priority' is reserved"),
    ]:
        client.submit(1, description)
        token, status, flags, answer = client.complete()
        assert (token, status, flags, answer["status"]) == (1, expected, 1, expected)
        assert words in answer["message"]
    client.submit(2, request(b"patient", patient))
    client.submit(2, operation=GIVE_UP)
    assert client.complete()[:3] == (2, CANCELLED, 1)


def test_who_sleeps_is_rung_for(client):
    """And the bell is down again afterwards; who does not sleep is not rung for."""
    client.write(DATA, bytes(16))
    given = [tensor(b"INPUT0", "FP32", [1, 4], 16)]
    client.ask(b"gather", given)
    struct.pack_into("<I", client.memory, CLIENTS_BELL, 1)
    client.submit(9, request(b"gather", given))
    assert len(client.socket.recv(64)) == 1
    assert (client.word(CLIENTS_BELL), client.word(COMPLETIONS_PUT)) == (0, 2)
    assert client.complete()[:3] == (9, 0, 1)
    # The server sleeps too, and says for what.
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while client.word(SERVERS_BELL) != 1:
        assert time.monotonic() < deadline, "the server's bell is not up"


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ((b"NRDRING\r", 1, 48, 4096, 8, 8, 0), "magic"),
        ((MAGIC, 2, 48, 4096, 8, 8, 0), "expected version 1 of the ring, got 2"),
        ((MAGIC, 1, 40, 4096, 8, 8, 0), "40"),
        ((MAGIC, 1, 48, 1 << 62, 8, 8, 0), "an arena has at most 1073741824 bytes (--ring-arena-byte-size-max)"),
        ((MAGIC, 1, 48, 4096, 65_537, 8, 0), "at most 65536 places"),
        ((MAGIC, 1, 48, 4096, 8, 0xFFFFFFFF, 0), "at most 65536 places"),
    ],
)
def test_a_refusal_has_words_and_no_memory(with_ring, hello, words):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_SECONDS_MAX)
        peer.connect(str(with_ring[1]))
        peer.sendall(HELLO.pack(*hello))
        welcome, descriptors, _, _ = socket.recv_fds(peer, 48, 1)
        magic, version, size, total, refusal_bytes, _ = WELCOME.unpack(welcome)
        assert (magic, version, size, total, descriptors) == (MAGIC, 1, 48, 0, [])
        refusal = peer.recv(refusal_bytes, socket.MSG_WAITALL).decode()
        assert words in refusal and peer.recv(1) == b""


def test_who_rings_without_an_end_keeps_nobody_else_from_being_served(start, tmp_path):
    """Nor the server from stopping while a request is in flight. One event loop serves them all."""
    repository = models.write(tmp_path / "models", {name: models.identity_models()[name] for name in ("fp32", "patient")})
    path = tmp_path / "socket"
    server = start(repository, "--reactors=1", f"--ring-socket={path}", "--exit-timeout-secs=2")
    with Client(path) as noisy:
        noisy.write(DATA, bytes(64))
        noisy.submit(1, request(b"patient", [tensor(b"INPUT0", "FP32", [1, 16], 64)]))

        def ring() -> None:
            with contextlib.suppress(OSError):
                while True:
                    noisy.socket.sendall(b"!" * 200_000)

        threading.Thread(target=ring, daemon=True).start()
        time.sleep(0.1)
        with Client(path) as other:
            began = time.monotonic()
            other.write(DATA, bytes(64))
            for _ in range(20):
                other.ask(b"fp32", [tensor(b"INPUT0", "FP32", [16], 64)])
            assert time.monotonic() - began < 2
        server.stop()
        assert server.stop_seconds < 5


def test_the_memory_cannot_be_cut_short(with_ring):
    """By whoever has its descriptor: its size is sealed, and so are the seals."""
    server, path = with_ring
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_SECONDS_MAX)
        peer.connect(str(path))
        peer.sendall(HELLO.pack(MAGIC, 1, 48, 4096, 8, 8, 0))
        _, [descriptor], _, _ = socket.recv_fds(peer, 48, 1)
        with os.fdopen(descriptor, "r+b") as memory:
            for size in (0, 1 << 20):
                with pytest.raises(PermissionError):
                    os.ftruncate(memory.fileno(), size)
            assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        assert f"process {os.getpid()} of user {os.geteuid()}, group {os.getegid()} uses the ring" in server.log_tail()
