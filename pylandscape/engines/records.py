"""The records of a plan, as `csrc/common/plan.h` reads them: same names, same order, all int64.

An offset or an index of -1 means that there is none.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

NONE = -1


class Activation(IntEnum):
    NONE = 0
    RELU = 1
    LEAKY_RELU = 2
    HARDTANH = 3
    ELU = 4
    GELU = 5
    GELU_TANH = 6
    SILU = 7
    TANH = 8
    SIGMOID = 9
    SOFTPLUS = 10
    HARDSWISH = 11
    HARDSIGMOID = 12
    AFFINE = 13


class BinaryKind(IntEnum):
    ADD = 0
    SUB = 1
    MUL = 2


class FusedPool(IntEnum):
    NONE = 0
    MAX = 1
    AVERAGE = 2


class Room(IntEnum):
    SUB_BLOCK = 0
    WHOLE_BLOCK = 1
    KEPT = 2


class LossKind(IntEnum):
    CROSS_ENTROPY = 0
    BINARY_CROSS_ENTROPY = 1
    SQUARED = 2
    ABSOLUTE = 3


def numbers(record: object) -> list[int]:
    """A record, and the records in it, as a flat list."""
    flat: list[int] = []
    for item in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, item.name)
        flat += numbers(value) if dataclasses.is_dataclass(value) else [int(value)]
    return flat


@dataclass
class Value:
    """One activation for a block of samples, channels-last, with a halo of zeros."""

    offset: int
    sample_pitch: int
    row_pitch: int
    pixel_pitch: int
    channels: int
    height: int
    width: int
    room: int


@dataclass
class Section:
    samples: int
    first_step: int
    last_step: int


@dataclass
class Fold:
    """Per point: scale = gamma * inverse_std, shift = (bias - mean) * scale + beta."""

    channels: int
    scale: int
    shift: int
    gamma: int
    beta: int
    bias: int
    mean: int
    inverse_std: int


@dataclass
class Rounding:
    offset: int
    count: int


@dataclass
class Head:
    lanes: int
    arena: int
    block: int
    packed: int
    folded: int
    linear_first: int
    tail: int
    values: int
    sections: int
    folds: int
    roundings: int
    steps: int


@dataclass
class Epilogue:
    """activation(scale * x + shift + residual)."""

    scale: int = NONE
    shift: int = NONE
    residual: int = NONE
    activation: int = Activation.NONE
    constants: int = 0


@dataclass
class StepRecord:
    """Base of the steps of all plans. `kind` tells C++ what it is; `name` is for people."""

    kind: ClassVar[int]
    name: ClassVar[str]

    def numbers(self) -> list[int]:
        fields = numbers(self)
        return [self.kind, 2 + len(fields), *fields]


@dataclass
class Step(StepRecord):
    """Base of the steps for CPUs: `kind` is the position in plan.h's StepKind."""


@dataclass
class Load(Step):
    kind, name = 0, "load"
    out: int
    channel_stride: int
    row_stride: int
    pixel_stride: int


@dataclass
class Convolution(Step):
    kind, name = 1, "direct"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    group_in: int
    group_out: int
    by_row: int
    pool: int


@dataclass
class Tiles:
    tile: int
    pad_h: int
    pad_w: int
    tiles_h: int
    tiles_w: int
    at_once: int
    scratch: int
    input_pitch: int
    output_pitch: int


@dataclass
class Winograd(Step):
    kind, name = 2, "winograd"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    tiles: Tiles
    pool: int
    second_input: int = NONE
    second_weights: int = NONE


@dataclass
class Depthwise(Step):
    kind, name = 3, "depthwise"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int


@dataclass
class Narrow(Step):
    kind, name = 14, "narrow"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    kernel_h: int
    kernel_w: int
    pad_h: int
    pad_w: int
    pool: int


@dataclass
class TileConvolution(Step):
    kind, name = 15, "bfloat16 tiles"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    scratch: int
    reach: int


@dataclass
class TileLinear(Step):
    kind, name = 16, "bfloat16 tiles"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    depth: int
    outputs: int
    scratch: int


@dataclass
class Linear(Step):
    kind, name = 4, "linear"
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    segments: int
    segment: int
    segment_pitch: int
    outputs: int
    by_pixel: int
    accumulate: int = 0


@dataclass
class Pool(Step):
    input: int
    out: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int = 1
    dilation_w: int = 1
    count_padding: int = 0
    divisor: int = 0


@dataclass
class MaxPool(Pool):
    kind, name = 5, "max_pool"


@dataclass
class AveragePool(Pool):
    kind, name = 6, "avg_pool"


@dataclass
class AdaptivePool(Step):
    kind, name = 7, "adaptive_avg_pool"
    input: int
    out: int


@dataclass
class Pointwise(Step):
    kind, name = 8, "pointwise"
    input: int
    out: int
    epilogue: Epilogue = field(default_factory=Epilogue)


@dataclass
class Binary(Step):
    kind, name = 9, "binary"
    left: int
    right: int
    out: int
    operation: int
    epilogue: Epilogue = field(default_factory=Epilogue)


@dataclass
class _Norm(Step):
    input: int
    out: int
    weight: int
    bias: int
    groups: int
    per_element: int
    constants: int


@dataclass
class PixelNorm(_Norm):
    kind, name = 10, "layer_norm"


@dataclass
class GroupNorm(_Norm):
    kind, name = 11, "group_norm"


@dataclass
class Move(Step):
    kind, name = 12, "move"
    input: int
    out: int
    runs: int
    count: int


@dataclass
class Loss(Step):
    kind, name = 13, "loss"
    input: int
    loss: int
    outputs: int
    weights: int
    smoothing: int
    ignore_index: int
    count_correct: int
