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
  float* kept;             // values that outlive the pass over a block
  const float* weights;    // of the point, with the folded ones behind
  const float* direction;  // the same of a direction, for derivatives
  float* gradient;         // sums of derivatives in the parameters
  const float* constants;
  const std::int32_t* indices;
  const float* inputs;
  Int input_stride;
  const Int* classes;    // targets of a classifier,
  const float* targets;  // or those of a regression
  Int first_sample;      // of the block, in the data
  Int first, count;      // of the sub-block, in the block

  float* sample(const Value& value, Int s) const {
    float* base = value.room == Room::kept ? kept : arena;
    return base + value.offset +
           (value.room == Room::sub_block ? s : first + s) * value.sample_pitch;
  }

  const float* weights_at(Int offset) const {
    return offset < kDirection ? weights + offset : direction + (offset - kDirection);
  }
};

}  // namespace pylandscape
