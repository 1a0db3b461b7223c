"""Where a kernel's test runs: on the device, or in the interpreter where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> Iterator[torch.device]:
    """CUDA, or the CPU with launches interpreted; the test is skipped where Triton is missing."""
    pytest.importorskip("triton", reason="needs Triton")
    torch.manual_seed(0)
    if torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        from tests.gpu.interpreter import interpreting

        with interpreting():
            yield torch.device("cpu")
