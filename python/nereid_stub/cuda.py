"""What is needed of the CUDA driver: a tensor on a GPU is copied to the host before it is sent."""

from __future__ import annotations

import ctypes

from .errors import TritonModelException

_driver = None
_contexts: dict = {}


def _check(what: str, result: int) -> None:
    if result != 0:
        raise TritonModelException(f"{what} of the CUDA driver failed with error {result}")


def copy_to_host(target: int, source: int, byte_size: int, device: int) -> None:
    """Copies what all streams of the device have written before."""
    global _driver
    if _driver is None:
        try:
            _driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise TritonModelException(f"a tensor on GPU {device} cannot be copied to the host: {error}") from None
        _check("cuInit", _driver.cuInit(0))
    context = _contexts.get(device)
    if context is None:
        context = ctypes.c_void_p()
        handle = ctypes.c_int()
        _check("cuDeviceGet", _driver.cuDeviceGet(ctypes.byref(handle), device))
        _check("cuDevicePrimaryCtxRetain", _driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
        _contexts[device] = context
    _check("cuCtxPushCurrent", _driver.cuCtxPushCurrent_v2(context))
    try:
        _check("cuCtxSynchronize", _driver.cuCtxSynchronize())
        arguments = ctypes.c_void_p(target), ctypes.c_uint64(source), ctypes.c_size_t(byte_size)
        _check("cuMemcpyDtoH", _driver.cuMemcpyDtoH_v2(*arguments))
    finally:
        _driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
