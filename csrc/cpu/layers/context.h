// What a step sees while a sub-block of samples runs, and where the loss leaves its sums.

#pragma once

#include "common/plan.h"

namespace pylandscape {

// Sums over the samples of a block: terms a and weights b of the loss, and predictions.
struct BlockSums {
  double a, aa, ab, b, bb, correct, counted;
};

struct Context {
  const Value* values;
  float* arena;
  const float* weights;  // of the point, with the folded ones behind
  const float* constants;
  const std::int32_t* indices;
  const float* inputs;
  Int input_stride;
  const Int* classes;    // targets of a classifier,
  const float* targets;  // or those of a regression
  Int first_sample;      // of the block, in the data
  Int first, count;      // of the sub-block, in the block

  float* sample(const Value& value, Int s) const {
    return arena + value.offset + (value.per_block ? first + s : s) * value.sample_pitch;
  }
};

}  // namespace pylandscape
