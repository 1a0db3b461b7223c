"""The GPUs of this machine, as their driver knows them.

Asked without torch and without beginning anything on them: a preflight should neither wait nor take memory.
Knows nothing of models.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """capability: (9, 0) for sm_90."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


def gpus() -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves; none where there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_gpu(driver, number) for number in range(count.value)]


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=(capability[0], capability[1]),
        memory_bytes=total.value,
    )
