"""Where activations lie in a thread's arena: channels-last, with halos of zeros, memory reused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pylandscape.engines.program import NotCovered
from pylandscape.engines.records import Room, Value

# Samples that lie a multiple of so many floats apart compete for a few sets of the nearest cache,
# 64 of 64 bytes. With the shift the next one begins behind the panel that a Linear reads of one.
_COMPETING_FLOATS = 256
_SHIFT_FLOATS = 96


@dataclass
class Slot:
    """One activation of a plan.

    `order` tells what the channels are: the first dimension of torch's shape (`first`, as for
    convolutions) or the last (`last`, as for linear layers). A `dense` slot has no padding
    channels.
    `first_step` writes it, `last_step` reads it last.
    """

    channels: int
    height: int
    width: int
    order: str
    dense: bool = False
    dedicated: bool = False  # not all of a pixel is written, so the memory must stay as it began
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    first_step: int = -1
    last_step: int = -1
    room: Room = Room.SUB_BLOCK
    offset: int = -1
    lanes: int = field(default=1, repr=False)

    @property
    def pixel_pitch(self) -> int:
        return self.channels if self.dense else round_up(self.channels, self.lanes)

    @property
    def row_pitch(self) -> int:
        return (self.left + self.width + self.right) * self.pixel_pitch

    @property
    def sample_pitch(self) -> int:
        pitch = round_up((self.top + self.height + self.bottom) * self.row_pitch, self.lanes)
        return pitch + (_SHIFT_FLOATS if pitch % _COMPETING_FLOATS == 0 else 0)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def is_flat(self) -> bool:
        return self.pixels == 1

    def need_halo(self, top: int, bottom: int, left: int, right: int) -> None:
        """A consumer reads so many pixels beyond each border."""
        self.top, self.bottom = max(self.top, top), max(self.bottom, bottom)
        self.left, self.right = max(self.left, left), max(self.right, right)

    def positions(self) -> Tensor:
        """Int64 [size]: the offset of each element, in torch's order, from pixel (0, 0)."""
        rows = torch.arange(self.height)[:, None, None] * self.row_pitch
        pixels = torch.arange(self.width)[None, :, None] * self.pixel_pitch
        offsets = rows + pixels + torch.arange(self.channels)
        return (offsets.permute(2, 0, 1) if self.order == "first" else offsets).reshape(-1)

    def geometry(self) -> tuple[int, ...]:
        """Slots of the same geometry may share memory: their halos are the same places."""
        return (
            self.channels, self.height, self.width, self.dense, self.room,
            self.top, self.bottom, self.left, self.right,
        )  # fmt: skip

    def record(self) -> Value:
        return Value(
            self.offset + self.top * self.row_pitch + self.left * self.pixel_pitch,
            self.sample_pitch,
            self.row_pitch,
            self.pixel_pitch,
            self.channels,
            self.height,
            self.width,
            self.room,
        )


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def image_shape(shape: tuple[int, ...], order: str) -> tuple[int, int, int]:
    """(channels, height, width) of a value of torch's `shape`."""
    if len(shape) <= 1:
        return (shape[0] if shape else 1), 1, 1
    if len(shape) > 3:
        raise NotCovered(f"a value of {len(shape)} dimensions per sample has no native layout")
    channels = shape[0] if order == "first" else shape[-1]
    rest = shape[1:] if order == "first" else shape[:-1]
    return channels, (rest[0] if len(rest) == 2 else 1), rest[-1]


def assign_memory(slots: list[Slot], samples: Mapping[Room, int], first: int = 0) -> int:
    """Gives every slot an offset in the arena, from `first` on, and returns where the last ends.

    Args:
        slots: in the order in which they are written.
        samples: for how many a slot has room.
    """
    used = first
    free: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # geometry: (free from step, offset)
    for slot in sorted(slots, key=lambda s: s.first_step):
        key = slot.geometry()
        reusable = [] if slot.dedicated else free.get(key, [])
        earlier = [place for place in reusable if place[0] < slot.first_step]
        if earlier:
            slot.offset = earlier[0][1]
            reusable.remove(earlier[0])
        else:
            slot.offset = used
            # behind the last row a vector load may reach one halo pixel further
            used += round_up(slot.sample_pitch * samples[slot.room] + slot.lanes, 16)
        if not slot.dedicated:
            free.setdefault(key, []).append((slot.last_step, slot.offset))
    return used
