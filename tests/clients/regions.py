"""Regions of system shared memory, and tensors that lie in them."""

from __future__ import annotations

import contextlib
import pathlib
import uuid

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm

CLIENTS = {"http": triton_http, "grpc": triton_grpc}
every_protocol = pytest.mark.parametrize("protocol", CLIENTS)
OBJECTS = pathlib.Path("/dev/shm")


def opened_by(process: int) -> set[str]:
    """The named objects that a process has open or mapped."""
    places = {line.partition("/")[2] for line in pathlib.Path(f"/proc/{process}/maps").read_text().splitlines()}
    for file in pathlib.Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            places.add(str(file.readlink())[1:])
    return {place for place in places if pathlib.Path("/", place).is_relative_to(OBJECTS)}


def left_by(process: int) -> set[pathlib.Path]:
    """The objects of a `nereid bench` that are still there."""
    return set(OBJECTS.glob(f"nereid-bench-{process}-*"))


@contextlib.contextmanager
def client_of(server, protocol: str):
    """A client of the server by one of the protocols."""
    address = server.http_address if protocol == "http" else server.grpc_address
    with contextlib.closing(CLIENTS[protocol].InferenceServerClient(address)) as client:
        yield client


class Region:
    """A registered region, and the object behind it."""

    def __init__(self, client, byte_size: int, offset: int = 0):
        self.name, self.key = f"region-{uuid.uuid4().hex}", f"/nereid-test-{uuid.uuid4().hex}"
        self.byte_size = byte_size
        self.handle = shm.create_shared_memory_region(self.name, self.key, offset + byte_size)
        self.path = pathlib.Path(f"{OBJECTS}{self.key}")
        try:
            client.register_system_shared_memory(self.name, self.key, byte_size, offset)
        except BaseException:
            shm.destroy_shared_memory_region(self.handle)
            raise

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *_) -> None:
        shm.destroy_shared_memory_region(self.handle)


def given_in(client_module, name: str, array: np.ndarray, datatype: str, region: Region, size: int, offset: int = 0):
    """An input that lies in a region."""
    made = client_module.InferInput(name, list(array.shape), datatype)
    made.set_shared_memory(region.name, size, offset)
    return made


def wanted_in(client_module, name: str, region: Region, size: int, offset: int = 0):
    """An output that goes to a region."""
    made = client_module.InferRequestedOutput(name)
    made.set_shared_memory(region.name, size, offset)
    return made


def registered(client) -> set[str]:
    """The names of all regions."""
    status = client.get_system_shared_memory_status()
    return set(status.regions) if hasattr(status, "regions") else {each["name"] for each in status}
