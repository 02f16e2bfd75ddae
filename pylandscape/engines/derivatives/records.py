"""The records of steps that only derivatives have; `csrc/common/plan.h` tells what they do."""

from dataclasses import dataclass

from pylandscape.engines.records import NONE, AdaptivePool, Pool, Step, Tiles


@dataclass
class Slope(Step):
    kind, name = 17, "slope"
    input: int
    source: int
    tangent: int
    cotangent: int
    out: int
    activation: int
    constants: int


@dataclass
class Combine(Step):
    kind, name = 18, "combine"
    left: int
    right: int
    out: int
    left_scale: int = NONE
    right_scale: int = NONE
    shift: int = NONE
    pitch: int = 0


@dataclass
class MaxPoolChoice(Pool):
    kind, name = 19, "max_pool choice"
    rectified: int = 0


@dataclass
class MaxPoolGradient(Pool):
    kind, name = 20, "max_pool gradient"
    source: int = NONE
    spread: int = 0


@dataclass
class AveragePoolGradient(Pool):
    kind, name = 21, "avg_pool gradient"


@dataclass
class AdaptivePoolGradient(AdaptivePool):
    kind, name = 22, "adaptive_avg_pool gradient"


@dataclass
class Pairs:
    left: int
    right: int
    second_left: int = NONE
    second_right: int = NONE


@dataclass
class WindowGradient(Step):
    """Base of the derivatives in the filters of convolutions."""

    pairs: Pairs
    offset: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int


@dataclass
class ConvolutionGradient(WindowGradient):
    kind, name = 23, "conv gradient"
    groups: int
    group_in: int
    group_out: int
    by_row: int


@dataclass
class LinearGradient(Step):
    kind, name = 24, "linear gradient"
    pairs: Pairs
    offset: int
    depth: int


@dataclass
class ChannelGradient(Step):
    kind, name = 25, "channel gradient"
    pairs: Pairs
    offset: int
    pitch: int = 0


@dataclass
class LossGradient(Step):
    kind, name = 26, "loss gradient"
    input: int
    tangent: int
    out: int
    loss: int
    outputs: int
    weights: int
    smoothing: int
    ignore_index: int
    fisher: int


@dataclass
class WinogradGradient(Step):
    kind, name = 27, "conv gradient Winograd"
    pairs: Pairs
    offset: int
    tiles: Tiles


@dataclass
class NormSlope(Step):
    kind, name = 28, "norm slope"
    input: int
    source: int
    tangent: int
    cotangent: int
    out: int
    groups: int
    by_pixel: int
    constants: int
    scratch: int


@dataclass
class DepthwiseGradient(WindowGradient):
    kind, name = 29, "conv gradient depthwise"


@dataclass
class Winners(Pool):
    kind, name = 30, "winners"
    image: int = NONE
    like_input: int = NONE
    like_pooled: int = NONE
    band: int = 0
    conv_stride_h: int = 1
    conv_stride_w: int = 1
    conv_pad_h: int = 0
    conv_pad_w: int = 0


@dataclass
class Chosen(Step):
    """Base of the steps that read winners."""

    winners: int
    band: int
    kernel_h: int
    kernel_w: int
    dilation_h: int


@dataclass
class ChosenProducts(Chosen):
    input: int
    out: int
    weights: int
    second_in: int
    second_weights: int


@dataclass
class ChosenConvolution(ChosenProducts):
    kind, name = 31, "conv of chosen outputs"
    shift: int
    scratch: int


@dataclass
class ChosenBack(ChosenProducts):
    kind, name = 32, "conv back from chosen outputs"
    above: int
    below: int
    before: int
    behind: int


@dataclass
class ChosenGradient(Chosen):
    kind, name = 33, "conv gradient of chosen outputs"
    pairs: Pairs
    offset: int
