"""What launchers of Gluon kernels ask of a device and of its Triton.

Knows no kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
except ImportError:  # a Triton without Gluon
    TensorDescriptor = None

OPERAND_WIDTH = 128  # of what one copy brings, unless said otherwise


def has_gluon(device: torch.device) -> bool:
    """Whether Gluon is there, and the device of the one kind whose instructions such kernels name."""
    if TensorDescriptor is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def operand(matrix: Tensor, *, rows: int = 128, width: int = OPERAND_WIDTH) -> Any:
    """Matrices, one below the other, as the copy engine reads them: `rows` at a time, zeros beyond.

    width: columns at a time, of at least 128 bytes.
    """
    flat = matrix.view(-1, matrix.shape[-1])
    layout = NVMMASharedLayout(128, 8 * matrix.element_size(), 2)
    return TensorDescriptor.from_tensor(flat, [rows, width], layout)


def multiprocessors(device: torch.device) -> int:
    """As many programs stay at work at a time where each takes all the shared memory there is."""
    return torch.cuda.get_device_properties(device).multi_processor_count
