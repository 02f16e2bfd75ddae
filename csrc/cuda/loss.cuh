// The loss, fused with its sums over samples: a warp per sample, the terms in float64. A block
// leaves seven numbers per point and chunk of samples, a second kernel adds the chunks in order: no
// result depends on which block ran first.

#pragma once

#include "cuda/epilogue.cuh"

namespace pylandscape::cuda {

inline constexpr int kLossSums = 7;  // a, a^2, a b, b, b^2, correct, counted
inline constexpr int kLossWarps = 8;
inline constexpr int kLossSamples = 64;  // per block

struct LossWork {
  Loss step;
  Rows<const float> in;
  Global<const float> constants;
  Global<const Int> classes;  // of the first sample, or
  Global<const float> targets;
  Int samples;
};

__device__ inline void add_sample(double (&sums)[kLossSums], double a, double b) {
  sums[0] += a;
  sums[1] += a * a;
  sums[2] += a * b;
  sums[3] += b;
  sums[4] += b * b;
}

__device__ inline float warp_max(float value) {
  for (int width = kWarp / 2; width > 0; width /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, width);
    value = other > value ? other : value;
  }
  return value;
}

// -log softmax of the target, weighted and smoothed as torch does. All lanes call it; the sums are
// lane 0's.
__device__ inline void add_cross_entropy(const LossWork& work, Global<const float> x, Int target,
                                         double (&sums)[kLossSums]) {
  const Loss& step = work.step;
  const int lane = threadIdx.x % kWarp;
  if (target == step.ignore_index) return;
  float largest = -INFINITY;
  for (Int c = lane; c < step.outputs; c += kWarp) largest = x[c] > largest ? x[c] : largest;
  largest = warp_max(largest);
  double sum = 0;
  bool earlier = false;  // a score before the target's that is as large
  for (Int c = lane; c < step.outputs; c += kWarp) {
    sum += static_cast<double>(expf(x[c] - largest));
    earlier |= c < target && x[c] == largest;
  }
  const double log_sum = log(__shfl_sync(kAllLanes, warp_sum(sum), 0));
  earlier = __any_sync(kAllLanes, earlier);
  const bool weighted = step.weights != kNone;
  const double weight = weighted ? work.constants[step.weights + target] : 1.0;
  double a = weight * (log_sum - static_cast<double>(x[target] - largest));
  if (step.smoothing != kNone) {
    double others = 0;
    for (Int c = lane; c < step.outputs; c += kWarp) {
      const double of_class = weighted ? work.constants[step.weights + c] : 1.0;
      others += of_class * (log_sum - static_cast<double>(x[c] - largest));
    }
    others = warp_sum(others);
    const double smoothing = work.constants[step.smoothing];
    a = (1.0 - smoothing) * a + smoothing / static_cast<double>(step.outputs) * others;
  }
  add_sample(sums, a, weight);
  sums[5] += x[target] == largest && !earlier;
  sums[6] += 1;
}

__device__ inline float loss_term(LossKind kind, float x, float y, float positive) {
  if (kind == LossKind::squared) return (x - y) * (x - y);
  if (kind == LossKind::absolute) return fabsf(x - y);
  // (1 - y) x + (1 + (p - 1) y) (log(1 + exp(-|x|)) + max(-x, 0)), as torch does
  const float rest = log1pf(expf(-fabsf(x))) + (x > 0 ? 0.0f : -x);
  return fmaf(fmaf(positive - 1.0f, y, 1.0f), rest, (1.0f - y) * x);
}

// Losses that are a mean over the outputs of a sample.
__device__ inline void add_elementwise(const LossWork& work, Global<const float> x,
                                       Global<const float> y, double (&sums)[kLossSums]) {
  const Loss& step = work.step;
  double total = 0, correct = 0;
  for (Int i = threadIdx.x % kWarp; i < step.outputs; i += kWarp) {
    const float positive = step.weights == kNone ? 1.0f : work.constants[step.weights + i];
    total += static_cast<double>(loss_term(step.loss, x[i], y[i], positive));
    correct += (x[i] > 0) == (y[i] > 0.5f);
  }
  total = warp_sum(total);
  correct = warp_sum(correct);
  const auto outputs = static_cast<double>(step.outputs);
  add_sample(sums, total / outputs, 1);
  if (step.count_correct) {
    sums[5] += correct / outputs;
    sums[6] += 1;
  }
}

// partial [points][chunks][7]; blockIdx.x is the chunk of samples, blockIdx.y the point.
__global__ void __launch_bounds__(kLossWarps* kWarp)
    loss_kernel(LossWork work, Global<double> partial) {
  __shared__ Shared<double> of_warps[kLossWarps * kLossSums];
  const Int point = blockIdx.y;
  const int warp = threadIdx.x / kWarp;
  double sums[kLossSums] = {};
  for (int i = warp; i < kLossSamples; i += kLossWarps) {
    const Int sample = Int{blockIdx.x} * kLossSamples + i;
    if (sample >= work.samples) break;
    const Global<const float> x = work.in.at(point, sample);
    if (work.step.loss == LossKind::cross_entropy) {
      add_cross_entropy(work, x, work.classes[sample], sums);
    } else {
      add_elementwise(work, x, work.targets + sample * work.step.outputs, sums);
    }
  }
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int i = 0; i < kLossSums; ++i) of_warps[warp * kLossSums + i] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x < kLossSums) {
    double sum = 0;
    for (int w = 0; w < kLossWarps; ++w) sum += of_warps[w * kLossSums + threadIdx.x];
    partial[(point * gridDim.x + blockIdx.x) * kLossSums + threadIdx.x] = sum;
  }
}

// sums [points][7] += partial, the chunks in order.
__global__ void __launch_bounds__(256)
    add_losses_kernel(Global<const double> partial, Int points, Int chunks, Global<double> sums) {
  for (Int i = grid_thread(); i < points * kLossSums; i += grid_threads()) {
    const Int point = i / kLossSums, which = i % kLossSums;
    double sum = 0;
    for (Int c = 0; c < chunks; ++c) sum += partial[(point * chunks + c) * kLossSums + which];
    sums[i] += sum;
  }
}

template <typename Launch>
void run_loss(const Launch& launch, const LossWork& work, Int points, Global<double> partial,
              Global<double> sums) {
  const Int chunks = divide_up(work.samples, kLossSamples);
  launch(PYLANDSCAPE_KERNEL(loss_kernel),
         dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(points)), kLossWarps * kWarp,
         work, partial);
  launch(PYLANDSCAPE_KERNEL(add_losses_kernel), blocks_for(points * kLossSums, 256), 256, partial,
         points, chunks, sums);
}

}  // namespace pylandscape::cuda
