"""From an FP8 checkpoint straight to the device, every byte read once.

Threads carry, each through pinned memory of its own, while the device takes what they carried before. Knows
nothing of what goes where (model/fp8_places.py), nor of files (model/reader.py).

Errors: ConfigError, and CheckpointError from the reader.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from kernels.fp8 import dequantize_blocks, quantize_blocks
from kernels.fp8_rows import GROUP
from model.config import ModelConfig
from model.fields import ConfigError
from model.fp8_places import Place, Room
from model.fp8_weights import Fp8Model
from model.reader import CHUNK_BYTES, DTYPES, WeightReader
from model.shards import refusal

logger = logging.getLogger(__name__)

THREADS = 8  # one carries 2.6 GB/s to an H200, eight 9.2, sixteen no more
BLOCK = (GROUP, GROUP)


def load_fp8_model(
    reader: WeightReader, config: ModelConfig, device: torch.device, threads: int = THREADS
) -> Fp8Model:
    """All of `config`, its MTP layer where it has one. Linears stored wide are quantised, with a warning."""
    if config.fp8_block not in (None, BLOCK):
        raise ConfigError(f"weight_block_size is {config.fp8_block}: the FP8 kernels take {BLOCK}")
    room = Room(config, device)
    model = room.model()
    carriers: SimpleQueue[_Carrier] = SimpleQueue()
    for _ in range(threads):
        carriers.put(_Carrier(reader, device))

    def carry(place: Place) -> None:
        carrier = carriers.get()
        try:
            carrier.carry(place)
        finally:
            carriers.put(carrier)

    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(carry, room.places):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    if quantized := sorted(name for _ in range(threads) for name in carriers.get().quantized):
        logger.warning("%d weights are not stored in FP8: quantised, as %s", len(quantized), quantized[0])
    return model


class _Carrier:
    """Takes tensors from the reader to their places.

    To a GPU through two pieces of pinned memory, one filled while the other flies.
    """

    def __init__(self, reader: WeightReader, device: torch.device) -> None:
        self.quantized: list[str] = []
        self._reader, self._device = reader, device
        self._flies = device.type == "cuda"
        self._rooms = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=self._flies) for _ in range(2)]
        self._landed = [_event() for _ in self._rooms] if self._flies else []

    @torch.inference_mode()  # of a thread: who made the places may have been in it, and these are others
    def carry(self, place: Place) -> None:
        values, scales = self._bring(place), self._reader.read_scales(place.name)
        if place.scale is None:
            place.values.copy_(values if scales is None else self._wide(values, scales))
            return
        if scales is None:
            values, scales = self._quantized(place, values)
        rows = values.view(torch.uint8)  # to move rows of FP8 is not written for every device
        if place.order is not None:
            rows = rows[place.order.to(self._device)]
        place.values.view(torch.uint8).copy_(rows)
        place.scale.copy_(scales)

    def _wide(self, values: Tensor, scales: Tensor) -> Tensor:
        """Of a tensor that the release leaves wide, and this checkpoint does not."""
        return dequantize_blocks(values, scales.to(self._device), BLOCK, torch.float32)

    def _quantized(self, place: Place, values: Tensor) -> tuple[Tensor, Tensor]:
        self.quantized.append(place.name)
        try:
            return quantize_blocks(values, BLOCK)
        except ValueError as error:
            raise refusal(self._reader.stored(place.name).file, place.name, str(error)) from None

    def _bring(self, place: Place) -> Tensor:
        """As stored, on the device."""
        stored = self._reader.stored(place.name)
        data = torch.empty(stored.num_bytes, dtype=torch.uint8, device=self._device)
        at = 0
        for turn, piece in enumerate(self._reader.pieces(place.name, self._free_rooms())):
            data[at : at + len(piece)].copy_(piece, non_blocking=True)
            if self._flies:
                self._landed[turn % 2].record()
            at += len(piece)
        return data.view(DTYPES[stored.dtype]).view(stored.shape)

    def _free_rooms(self) -> Iterator[Tensor]:
        while True:
            for turn, room in enumerate(self._rooms):
                if self._flies:
                    self._landed[turn].synchronize()
                yield room


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
