"""GPU memory that another process of this host may write.

CUDA's IPC handle is 64 bytes and travels like any other field of a frame; nothing is unpickled, as
torch.multiprocessing would. The driver's own library is called, which every machine with a GPU has. Knows
nothing of what lies in the memory.

Errors: CudaError.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from router.transport import RouterError

HANDLE_BYTES = 64
LAZY_PEER_ACCESS = 1
PAGE_BYTES = 2 << 20  # smaller allocations share one, and a handle opens all of it


class CudaError(RouterError):
    """The driver refused."""


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * HANDLE_BYTES)]


class CudaMemory:
    """Allocated apart from torch's own, so that a handle covers this and nothing else."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._cuda = _driver(device)
        address = ctypes.c_uint64()
        whole = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
        _check(self._cuda, self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(whole)))
        self.address, self.num_bytes, self._device = address.value, num_bytes, device
        self.buffer: Tensor = torch.as_tensor(_Span(self.address, num_bytes), device=device)
        self.buffer.zero_()
        torch.cuda.synchronize(device)
        handle = _Handle()
        _check(self._cuda, self._cuda.cuIpcGetMemHandle(ctypes.byref(handle), ctypes.c_uint64(self.address)))
        self.handle = bytes(bytearray(handle))  # by which another process may open this memory


class CudaPeer:
    """Another process's memory, for kernels of this device to read and write; stays mapped until closed."""

    def __init__(self, handle: bytes, device: torch.device) -> None:
        if len(handle) != HANDLE_BYTES:
            raise CudaError(f"a handle of {len(handle)} bytes: CUDA's have {HANDLE_BYTES}")
        self._cuda = _driver(device)
        address = ctypes.c_uint64()
        opened = self._cuda.cuIpcOpenMemHandle_v2(
            ctypes.byref(address), _Handle.from_buffer_copy(handle), ctypes.c_uint(LAZY_PEER_ACCESS)
        )
        _check(self._cuda, opened)
        self.address = address.value

    def close(self) -> None:
        """No kernel may use the address any more."""
        _check(self._cuda, self._cuda.cuIpcCloseMemHandle(ctypes.c_uint64(self.address)))


class CudaHost:
    """What one process gives and opens on one device; its own handles need no driver, which refuses them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own: dict[bytes, CudaMemory] = {}

    def allocate(self, num_bytes: int) -> CudaMemory:
        memory = CudaMemory(num_bytes, self._device)
        self._own[memory.handle] = memory
        return memory

    def open(self, handle: bytes) -> CudaPeer | OwnPeer:
        own = self._own.get(handle)
        return OwnPeer(own.address) if own is not None else CudaPeer(handle, self._device)


class OwnPeer:
    """A process that is its own expert actor."""

    def __init__(self, address: int) -> None:
        self.address = address

    def close(self) -> None:
        """Nothing was opened."""


class _Span:
    """What torch needs to see foreign memory as a tensor."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _driver(device: torch.device) -> Any:
    """The library, with torch's context of this device current on the calling thread."""
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)  # creates the context if there is none yet
    return ctypes.CDLL("libcuda.so.1")


def _check(cuda: Any, code: int) -> None:
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        raise CudaError(f"the CUDA driver said {(name.value or b'?').decode()} ({code})")


def copy_between(target: int, source: int, num_bytes: int, stream: torch.cuda.Stream) -> None:
    """Bytes from one address to another, of any GPU's, in the order of `stream`; returns at once."""
    cuda = ctypes.CDLL("libcuda.so.1")
    copied = cuda.cuMemcpyAsync(
        ctypes.c_uint64(target),
        ctypes.c_uint64(source),
        ctypes.c_size_t(num_bytes),
        ctypes.c_void_p(stream.cuda_stream),
    )
    _check(cuda, copied)
