// What the planner for GPUs (pylandscape/engines/cuda_plan.py) hands to evaluate_points: plain
// int64 records, in the field order of the dataclasses there. Enumerations are those of
// common/plan.h.
//
// An activation of one sample is laid out as torch has it, (C, H, W) without padding, and the
// parameters are torch's tensors one behind the other: nothing is packed, so a direction may be
// used as it is. `size` counts floats; a row is one sample at one point.

#pragma once

#include "common/plan.h"

namespace pylandscape::cuda {

// `offset` in floats per row of the workspace; kNone: the data's inputs, which all points share.
struct Value {
  Int offset, size;
};

// out = activation(normalised(x + bias) + residual). bias, gamma and beta are offsets into the
// parameters; mean and inverse_std into the constants, as are the activation's parameters a, b, c.
struct Epilogue {
  Int bias, gamma, beta, mean, inverse_std, residual;
  Activation activation;
  Int constants;
};

// Where one of the model's tensors lies in random directions: element offset + i of the parameters
// is number flat + i of the streams and belongs to filter `filter` + i / inner % rows. What is no
// parameter belongs to a filter whose scales are zero.
struct Origin {
  Int offset, flat, rows, inner, filter;
};

enum class StepKind : Int {
  convolution,
  linear,
  max_pool,
  average_pool,
  adaptive_pool,
  pointwise,
  binary,
  gather,
  normalize,
  loss,
};

struct Step {
  StepKind kind;
  Int length;  // of the record in int64, these two included
};

// Rows times weights [groups][outputs][depth]. Of a convolution a row is an output pixel and `taps`
// an offset into the indices: (element, dy, dx) of each position of a window. Of a linear layer a
// row is a vector.
struct Product : Step {
  Int in, out, weights;
  Epilogue epilogue;
  Int rows, outputs, depth, groups;
  Int taps, in_channels, in_h, in_w, out_w, stride_h, stride_w, pad_h, pad_w;
  FusedPool pool;
};

struct Pool : Step {
  Int in, out;
  Int channels, in_h, in_w, out_h, out_w;
  Int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Int count_padding, divisor;  // averages only; divisor 0: the number of elements
};

// A channel is `inner` floats that lie together.
struct Pointwise : Step {
  Int in, out, inner;
  Epilogue epilogue;
};

// Of operands that are broadcast, element i is the one that indices[map + i] says.
struct Binary : Step {
  Int left, right, out, left_map, right_map;
  BinaryKind operation;
  Epilogue epilogue;
};

// out[indices[pairs + 2 i]] = in[indices[pairs + 2 i + 1]] for i < count, or zero for -1.
struct Gather : Step {
  Int in, out, pairs, count;
};

// (x - mean) / sqrt(var + eps) over `groups` runs of a row; weight and bias (parameters, or kNone)
// of element i are those of index i % modulus / inner.
struct Normalize : Step {
  Int in, out, groups, epsilon, weight, bias, modulus, inner;
};

struct Loss : Step {
  Int in;
  LossKind loss;
  Int outputs, weights, smoothing, ignore_index, count_correct;
};

struct Head {
  Int row;           // floats per row of the workspace
  Int packed;        // parameters
  Int linear_first;  // 1: step 0 is linear and reads the inputs: its products serve all points
  Int values, steps;
};

}  // namespace pylandscape::cuda
