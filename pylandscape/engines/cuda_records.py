"""The records of a plan for GPUs, as `csrc/cuda/program.h` reads them: same names, same order."""

from dataclasses import dataclass, field

from pylandscape.engines.records import NONE, Activation, StepRecord


@dataclass
class Step(StepRecord):
    """Base of the steps for GPUs: `kind` is the position in program.h's StepKind."""


@dataclass
class Head:
    row: int
    packed: int
    linear_first: int
    values: int
    steps: int


@dataclass
class Value:
    offset: int
    size: int


@dataclass
class Epilogue:
    """activation(normalised(x + bias) + residual)."""

    bias: int = NONE
    gamma: int = NONE
    beta: int = NONE
    mean: int = NONE
    inverse_std: int = NONE
    residual: int = NONE
    activation: int = Activation.NONE
    constants: int = 0


@dataclass
class _Product(Step):
    input: int
    out: int
    weights: int
    epilogue: Epilogue
    rows: int
    outputs: int
    depth: int
    groups: int = 1
    taps: int = NONE
    in_channels: int = 0
    in_h: int = 0
    in_w: int = 0
    out_w: int = 0
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    pool: int = 0


@dataclass
class Convolution(_Product):
    kind, name = 0, "convolution"


@dataclass
class Linear(_Product):
    kind, name = 1, "linear"


@dataclass
class _Pool(Step):
    input: int
    out: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    count_padding: int = 0
    divisor: int = 0


@dataclass
class MaxPool(_Pool):
    kind, name = 2, "max_pool"


@dataclass
class AveragePool(_Pool):
    kind, name = 3, "avg_pool"


@dataclass
class AdaptivePool(_Pool):
    kind, name = 4, "adaptive_avg_pool"


@dataclass
class Pointwise(Step):
    kind, name = 5, "pointwise"
    input: int
    out: int
    inner: int
    epilogue: Epilogue = field(default_factory=Epilogue)


@dataclass
class Binary(Step):
    kind, name = 6, "binary"
    left: int
    right: int
    out: int
    left_map: int
    right_map: int
    operation: int
    epilogue: Epilogue = field(default_factory=Epilogue)


@dataclass
class Gather(Step):
    kind, name = 7, "gather"
    input: int
    out: int
    pairs: int
    count: int


@dataclass
class Normalize(Step):
    kind, name = 8, "normalize"
    input: int
    out: int
    groups: int
    epsilon: int
    weight: int
    bias: int
    modulus: int
    inner: int


@dataclass
class Loss(Step):
    kind, name = 9, "loss"
    input: int
    loss: int
    outputs: int
    weights: int
    smoothing: int
    ignore_index: int
    count_correct: int
