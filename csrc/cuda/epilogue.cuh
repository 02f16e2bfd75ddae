// A point's parameters, and what is done to a number right after it was summed.

#pragma once

#include "cuda/normal.cuh"
#include "cuda/program.h"

namespace pylandscape::cuda {

// Which of a step's tensors an element belongs to.
enum class Role { weights, bias, gamma, beta };

// Directions that are stored, [D, P].
struct Stored {
  static constexpr bool kGenerated = false;
  Global<const float> directions;
  Int size;

  __device__ float operator()(Role, Int j, Int i) const { return directions[j * size + i]; }
};

// Directions that are computed where they are used, from seeds [D] and scales [D, filters].
struct Generated {
  static constexpr bool kGenerated = true;
  Global<const Int> seeds;
  Global<const float> scales;
  Int filters;
  Origin origins[4];  // of the step's tensors, by role

  __device__ float operator()(Role role, Int j, Int i) const {
    const Origin& from = origins[static_cast<int>(role)];
    const auto local = static_cast<unsigned>(i - from.offset);
    const unsigned row =
        local / static_cast<unsigned>(from.inner) % static_cast<unsigned>(from.rows);
    return scales[j * filters + from.filter + row] *
           normal(static_cast<std::uint64_t>(seeds[j]), from.flat + local);
  }
};

// Parameters at points: center + sum_j c_j d_j, formed where they are used and never stored.
template <typename Directions>
struct Parameters {
  static constexpr bool kGenerated = Directions::kGenerated;
  Global<const float> center;       // [P]
  Global<const float> coordinates;  // [points, D]
  Directions directions;
  Int count;      // D
  bool separate;  // instead of points: the centre, then each direction

  __device__ float at(Role role, Int point, Int i) const {
    if (separate) return point == 0 ? center[i] : directions(role, point - 1, i);
    float sum = 0;
    for (Int j = 0; j < count; ++j) {
      sum = fmaf(coordinates[point * count + j], directions(role, j, i), sum);
    }
    return center[i] + sum;
  }
};

// An activation of all rows: sample s at point p starts at data + p * point + s * sample.
template <typename T>
struct Rows {
  Global<T> data;
  Int point, sample;

  __device__ Global<T> at(Int p, Int s) const { return data + (p * point + s * sample); }
};

struct Finish {
  Epilogue record;
  Global<const float> constants;
  Rows<const float> residual;
};

// NaN stays NaN in all of them, as in torch. __noinline__: it is called once per result, and a copy
// at each of those calls would cost every kernel registers and the compiler minutes.
__device__ __noinline__ inline float activated(Activation kind, float x, float a, float b,
                                               float c) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0 ? 0.0f : x;
    case Activation::leaky_relu:
      return x > 0 ? x : x * a;
    case Activation::hardtanh:
      return x < a ? a : x > b ? b : x;
    case Activation::elu:
      return x > 0 ? b * x : b * a * expm1f(x * c);
    case Activation::gelu:
      return 0.5f * x * erfcf(x * -0.70710678f);
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::silu:
      return x / (1.0f + expf(-x));
    case Activation::tanh:
      return tanhf(x);
    case Activation::sigmoid:
      return 1.0f / (1.0f + expf(-x));
    case Activation::softplus:
      return x * a > b ? x : log1pf(expf(x * a)) / a;
    case Activation::hardswish:
      return x * (x < -3.0f ? 0.0f : x > 3.0f ? 6.0f : x + 3.0f) / 6.0f;
    case Activation::hardsigmoid:
      return (x < -3.0f ? 0.0f : x > 3.0f ? 6.0f : x + 3.0f) / 6.0f;
    case Activation::affine:
      return fmaf(a, x, b);
  }
  return x;
}

// What the epilogue makes of a channel's sums: scale * x + shift.
struct Channel {
  float scale, shift;
};

template <typename Directions>
__device__ inline Channel channel_at(const Finish& finish, const Parameters<Directions>& parameters,
                                     Int point, Int channel) {
  const Epilogue& record = finish.record;
  const auto at = [&](Role role, Int offset, float missing) {
    return offset == kNone ? missing : parameters.at(role, point, offset + channel);
  };
  const float bias = at(Role::bias, record.bias, 0.0f);
  if (record.inverse_std == kNone) return {1.0f, bias};
  // gamma times weights is a product, not linear in the coordinates: folded at the point
  const float gamma = at(Role::gamma, record.gamma, 1.0f);
  const float beta = at(Role::beta, record.beta, 0.0f);
  const float scale = gamma * finish.constants[record.inverse_std + channel];
  return {scale, fmaf(bias - finish.constants[record.mean + channel], scale, beta)};
}

// `at` is the element of the sample, for the residual.
__device__ inline float finished(const Finish& finish, const Channel& channel, float x, Int point,
                                 Int sample, Int at) {
  float value = fmaf(x, channel.scale, channel.shift);
  if (finish.record.residual != kNone) value += finish.residual.at(point, sample)[at];
  if (finish.record.activation == Activation::none) return value;
  if (finish.record.activation == Activation::relu) return value < 0 ? 0.0f : value;
  const Global<const float> c = finish.constants + finish.record.constants;
  return activated(finish.record.activation, value, c[0], c[1], c[2]);
}

}  // namespace pylandscape::cuda
