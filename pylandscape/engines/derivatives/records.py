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
class Window:
    """Where the filters of a convolution lie over its input."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int


@dataclass
class WindowGradient(Step):
    """Base of the derivatives in the filters of convolutions."""

    pairs: Pairs
    offset: int
    window: Window


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
    like_output: int = NONE
    list: int = 0
    band: int = 0
    conv_stride_h: int = 1
    conv_stride_w: int = 1
    conv_pad_h: int = 0
    conv_pad_w: int = 0


@dataclass
class Rectified(Step):
    kind, name = 31, "rectified"
    input: int
    out: int
    like_input: int
    like_output: int
    list: int


@dataclass
class Lists:
    """What the steps that read lists share."""

    lists: int
    list: int
    band: int = 0
    kernel_h: int = 1
    kernel_w: int = 1
    dilation_h: int = 1


@dataclass
class Products:
    """One product, or the sum of two."""

    input: int
    out: int
    weights: int
    second_in: int = NONE
    second_weights: int = NONE


@dataclass
class ChosenSums(Step):
    kind, name = 32, "sums of chosen outputs"
    lists: Lists
    products: Products
    shift: int
    scratch: int


@dataclass
class ChosenBack(Step):
    kind, name = 33, "back from chosen outputs"
    lists: Lists
    products: Products
    above: int = 0
    below: int = 0
    before: int = 0
    behind: int = 0


@dataclass
class ChosenGradient(Step):
    kind, name = 34, "gradient of chosen outputs"
    lists: Lists
    pairs: Pairs
    offset: int
    bias: int


@dataclass
class PooledWindows(Step):
    """Base of what is done where a max_pool chose a first convolution's outputs."""

    input: int
    choice: int
    out: int
    window: Window


@dataclass
class PooledSums(PooledWindows):
    kind, name = 35, "sums of a pooled convolution"
    weights: int
    shift: int


@dataclass
class PooledGradient(PooledWindows):
    kind, name = 36, "gradient of a pooled convolution"
    offset: int
    bias: int
