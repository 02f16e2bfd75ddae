// What the planner (pylandscape/engines/plan.py) hands to evaluate_points: where every activation
// lies and which kernels run in which order. Plain int64 records; the field order here is the field
// order of the dataclasses there.
//
// All offsets and pitches count floats. Activations lie channels-last,
// [sample][row][pixel][channel], in an arena that each thread has for itself.

#pragma once

#include <cstdint>

namespace pylandscape {

using Int = std::int64_t;

inline constexpr Int kNone = -1;

// Room for one sub-block of a section, for the whole block, or, for the whole block, in the memory
// that the derivatives of a block are made from.
enum Room : Int { sub_block, whole_block, kept };

// Offsets into the weights from here on are those of a direction instead of the point.
inline constexpr Int kDirection = Int{1} << 40;

// One activation for a block of samples. `offset` is that of pixel (0, 0) of the first sample; halo
// pixels of zeros, where a consumer pads, lie before and behind.
struct Value {
  Int offset, sample_pitch, row_pitch, pixel_pitch;
  Int channels, height, width;
  Int room;  // see Room
};

// Steps [first_step, last_step) run for `samples` samples at a time before the next section starts.
struct Section {
  Int samples, first_step, last_step;
};

enum class Activation : Int {
  none,
  relu,
  leaky_relu,
  hardtanh,
  elu,
  gelu,
  gelu_tanh,
  silu,
  tanh,
  sigmoid,
  softplus,
  hardswish,
  hardsigmoid,
  affine,
};

// out = activation(scale[c] * x + shift[c] + residual). Offsets into the point's weights; the
// parameters a, b, c of the activation are at `constants` in the plan's constants.
struct Epilogue {
  Int scale, shift, residual;
  Activation activation;
  Int constants;
};

enum class StepKind : Int {
  load,
  convolution,
  winograd,
  depthwise,
  linear,
  max_pool,
  average_pool,
  adaptive_pool,
  pointwise,
  binary,
  pixel_norm,
  group_norm,
  move,
  loss,
  narrow,
  tile_convolution,
  tile_linear,
  slope,
  combine,
  max_pool_choice,
  max_pool_gradient,
  average_pool_gradient,
  adaptive_pool_gradient,
  convolution_gradient,
  linear_gradient,
  channel_gradient,
  loss_gradient,
  winograd_gradient,
  norm_slope,
  depthwise_gradient,
  winners,
  rectified,
  chosen_sums,
  chosen_back,
  chosen_gradient,
  pooled_sums,
  pooled_gradient,
};

struct Step {
  StepKind kind;
  Int length;  // of the record in int64, these two included
};

// Copies samples of the data into an activation; the data's strides are those of the tensor.
struct Load : Step {
  Int out, channel_stride, row_stride, pixel_stride;
};

// A pooling over 2x2 windows side by side, done on values that were just made.
enum class FusedPool : Int { none, max, average };

// Direct convolution by the segment GEMM. Weights [group][panel][segment][k][panel width].
struct Convolution : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Int groups, group_in, group_out;
  Int by_row;  // 1: a segment is a kernel row of all stored channels; 0: one kernel position
  FusedPool pool;
};

// How a 3x3 convolution of stride 1 is cut into tiles of the Winograd domain.
struct Tiles {
  Int tile;  // outputs per tile and axis: 2 or 4
  Int pad_h, pad_w, tiles_h, tiles_w;
  Int at_once;
  Int scratch, input_pitch, output_pitch;  // arena offset; floats per transformed tile
};

// 3x3, stride 1, in the Winograd domain. Weights [frequency][panel][k][panel width]. A second input
// with weights of its own, where there is one, adds its products.
struct Winograd : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Tiles tiles;
  Int pool;  // 1: a 2x2 max-pool of stride 2 follows at once
  Int second_in, second_weights;
};

// One input channel, at most eight output channels, stride 1. Weights [kernel position][channel].
struct Narrow : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int kernel_h, kernel_w, pad_h, pad_w;
  FusedPool pool;
};

// One filter per channel. Weights [kernel position][channel].
struct Depthwise : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Every output sees the whole input of its row: `segments` runs of `segment` floats. The rows are
// samples, or the pixels of all samples. Weights [panel][k][panel width].
struct Linear : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int segments, segment, segment_pitch, outputs, by_pixel;
  Int accumulate;  // 1: added to what `out` holds
};

// The products of a Convolution (one group, whole kernel rows) and of a Linear (of samples) in
// bfloat16 on matrix tiles. Weights [panel][depth / 2][panel width][2], rounded in place per point.
struct TileConvolution : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h;
  Int scratch, reach;  // arena offset of the rounded input; floats of the input that windows reach
};

struct TileLinear : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int depth, outputs, scratch;
};

struct Pool : Step {
  Int in, out;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Int count_padding, divisor;  // averages only; divisor 0: the number of elements
};

struct AdaptivePool : Step {
  Int in, out;
};

struct Pointwise : Step {
  Int in, out;
  Epilogue epilogue;
};

enum class BinaryKind : Int { add, subtract, multiply };

// Where one operand has a single pixel it goes with every pixel of the other.
struct Binary : Step {
  Int left, right, out;
  BinaryKind operation;
  Epilogue epilogue;
};

// (x - mean) / sqrt(var + eps) * weight + bias. Pixel norm: over the channels of each pixel.
// Group norm: over all pixels and the channels of a group; weights per channel, or per element in
// the layout of the activation without halo.
struct Norm : Step {
  Int in, out, weight, bias, groups, per_element, constants;
};

// Copies runs (source, destination, floats) of each sample; `runs` is an offset into the indices.
struct Move : Step {
  Int in, out, runs, count;
};

enum class LossKind : Int { cross_entropy, binary_cross_entropy, squared, absolute };

// The fused loss. Constants: class weights [classes] or positive weights, where there are any.
struct Loss : Step {
  Int in;
  LossKind loss;
  Int outputs, weights, smoothing, ignore_index, count_correct;
};

// The steps of derivatives. A value x of the point goes with its tangent x' along a direction, and
// its cotangent, the derivative g of the loss, with the tangent g' of that.

// out = f'(in) * source [+ f''(in) * tangent * cotangent], f an activation and `in` what it was
// given; for relu what it returned does as well.
struct Slope : Step {
  Int in, source, tangent, cotangent, out;
  Activation activation;
  Int constants;
};

// out = [left_scale[c] * left] [+ right_scale[c] * right] [+ shift[c]]; scales that are none are 1.
// Those of the next pixel are `pitch` further on: 0 where all pixels have the same.
struct Combine : Step {
  Int left, right, out, left_scale, right_scale, shift, pitch;
};

// out = d source [+ the derivative of d along `tangent`, times `cotangent`], d the derivative of
// normalising `in` without weights: over the channels of each pixel, or of a group of all pixels.
struct NormSlope : Step {
  Int in, source, tangent, cotangent, out, groups, by_pixel, constants, scratch;
};

// out = the place in its window of each window's maximum of `in`, counted by rows, as a float.
// rectified = 1: `in` is what a relu returned; -1 where the maximum is 0, so that nothing passes.
struct MaxPoolChoice : Pool {
  Int rectified;
};

// `in` is the choice of a max_pool. spread = 0: out = the source at the place chosen of each
// window; 1: the source of a window goes there.
struct MaxPoolGradient : Pool {
  Int source, spread;
};

// `in` of a window goes to all of its pixels in `out`, in the shares of the mean.
struct AveragePoolGradient : Pool {};
struct AdaptivePoolGradient : AdaptivePool {};

// One or two products of inputs and cotangents of outputs, summed into the gradient at `offset`.
struct Pairs {
  Int left, right, second_left, second_right;  // the second two may be none
};

// dw[kernel position, channel in][channel out] += sum over pixels.
struct WindowGradient : Step {
  Pairs pairs;
  Int offset;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Group by group. Order of Convolution.weights.
struct ConvolutionGradient : WindowGradient {
  Int groups, group_in, group_out, by_row;
};

// A Convolution with kernel rows as segments, and of its outputs those that a max_pool over 2x2
// windows side by side chose. `out` has a pixel per window. From the inputs of an output to those
// of the one beside it are at most a quarter of a vector's floats.
struct PooledWindows : Step {
  Int in, choice, out;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// out = what was chosen, zero where nothing was.
struct PooledSums : PooledWindows {
  Int weights, shift;
};

// dw += the sums of products with the cotangents `out` of what was chosen. Order of
// Convolution.weights. Where there is one, `bias` is the offset of the sums of the cotangents.
struct PooledGradient : PooledWindows {
  Int offset, bias;
};

// One filter per channel. Order of Depthwise.weights.
struct DepthwiseGradient : WindowGradient {};

// That of a Convolution in the Winograd domain, still to be transformed back:
// [frequency][panel][k][width].
struct WinogradGradient : Step {
  Pairs pairs;
  Int offset;
  Tiles tiles;
};

// dw[input][output] += sum over samples. Order of Linear.weights.
struct LinearGradient : Step {
  Pairs pairs;
  Int offset, depth;
};

// Lists of the outputs of a layer that have derivatives at all, for the steps below, which form
// them there alone. A list is that of a channel, `list` entries long: the number of outputs, the
// outputs, and what is left.

// What a max_pool chose of a convolution's outputs, in lists per band of `band` rows of windows.
// `in` is the choice, made of `image`. The filter of an output lies over the pixels from
// (row * conv_stride_h - conv_pad_h, ...) on. Lists hold places in samples with the pitches of
// `like_input` and of `like_output`, whose pixels are those of the pooling.
struct Winners : Pool {
  Int image, like_input, like_output, list, band;
  Int conv_stride_h, conv_stride_w, conv_pad_h, conv_pad_w;
};

// Where a relu behind a Linear returned more than zero, in lists for a block of samples. They hold
// samples of `like_input` and of `like_output`.
struct Rectified : Step {
  Int in, out, like_input, like_output, list;
};

// What the steps that read lists share. A convolution has a band, kernel and dilation, and weights
// [channel out][kernel row, column, channel in]; a Linear has band 0 and weights [panel][channel
// out][input of the panel].
struct Chosen : Step {
  Int lists, list, band, kernel_h, kernel_w, dilation_h;
};

// One product, or the sum of two.
struct ChosenProducts : Chosen {
  Int in, out, weights, second_in, second_weights;
};

// Outputs from inputs; zero where a list has none. `scratch`: a vector for each entry of a list,
// and three.
struct ChosenSums : ChosenProducts {
  Int shift, scratch;
};

// Outputs go back to all inputs that the filter was laid over, which reach so many pixels beyond
// each border.
struct ChosenBack : ChosenProducts {
  Int above, below, before, behind;
};

// The derivative in the filters, in the order of the weights. Where there is one, `bias` is the
// offset of the sums of the first cotangents.
struct ChosenGradient : Chosen {
  Pairs pairs;
  Int offset, bias;
};

// Per channel: sums over all pixels of left * right, or of left where right is none. With a pitch
// per element: the sums of the next pixel are `pitch` further on.
struct ChannelGradient : Step {
  Pairs pairs;
  Int offset, pitch;
};

// What the loss hands back. Without a tangent: its gradient in the outputs. With one: its Hessian
// in the outputs times the tangent, or for the Fisher matrix the gradient times its product with
// the tangent, over the weight of the sample.
struct LossGradient : Step {
  Int in, tangent, out;
  LossKind loss;
  Int outputs, weights, smoothing, ignore_index, fisher;
};

// Once per point: scale = gamma * constants[inverse_std], shift = (bias - mean) * scale + beta, per
// channel, written behind the point's weights.
struct Fold {
  Int channels, scale, shift, gamma, beta, bias, mean, inverse_std;
};

// Weights that a point rounds to bfloat16 in place.
struct Rounding {
  Int offset, count;
};

struct PlanHead {
  Int lanes;           // vector length the weights were packed for
  Int arena;           // floats per thread, without the products
  Int block;           // samples per block
  Int packed, folded;  // floats of a packed parameter vector, and of what the folds add to it
  // 1: step 0 loads and step 1 is a Linear whose products are formed per direction, not per point.
  // Its weights are the first `tail` floats of a packed vector and are never needed at a point.
  Int linear_first, tail;
  Int values, sections, folds, roundings, steps;
};

// A plan in the int64 numbers it came in: head, values, sections, folds, roundings, steps.
struct PlanView {
  const PlanHead* head;
  const Value* values;
  const Section* sections;
  const Fold* folds;
  const Rounding* roundings;
  const Step* const* steps;
};

}  // namespace pylandscape
