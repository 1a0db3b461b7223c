"""How a matrix is cut into blocks that share a scale.

Arithmetic of shapes, for those who check files too: knows nothing of tensors.
"""

from __future__ import annotations


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """[ceil(out / block rows), ceil(in / block columns)]: the shape of `weight_scale_inv`."""
    rows, columns = shape
    return -(-rows // block[0]), -(-columns // block[1])
