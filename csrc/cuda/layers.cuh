// Layers of evaluate_points that are no products: a thread per element of the result, which lies at
// the same place for all of them: [point][sample][element].

#pragma once

#include "cuda/epilogue.cuh"

namespace pylandscape::cuda {

inline constexpr int kLayerThreads = 256;

// The elements of a launch. Counted in 32 bits, whose division is several times faster; the planner
// keeps launches below 2^31 elements.
struct Extent {
  unsigned points, samples, size;

  __host__ __device__ unsigned work() const { return points * samples * size; }
};

struct Place {
  unsigned point, sample, element;

  __device__ Place(const Extent& extent, unsigned work) {
    const unsigned row = work / extent.size;
    element = work % extent.size;
    point = row / extent.samples;
    sample = row % extent.samples;
  }
};

__device__ inline unsigned layer_thread() { return blockIdx.x * kLayerThreads + threadIdx.x; }
__device__ inline unsigned layer_threads() { return gridDim.x * kLayerThreads; }

// The first layer at points, from its products with the centre and with each direction:
// Z(c) = Z(w0) + sum_j c_j Z(d_j). in [1 + D][samples][size].
template <typename Directions>
__global__ void __launch_bounds__(kLayerThreads)
    combine_kernel(Extent extent, Global<const float> products, Parameters<Directions> parameters,
                   Int outputs, Rows<float> out, Finish finish) {
  const Int next = Int{extent.samples} * extent.size;
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const Global<const float> z = products + (Int{at.sample} * extent.size + at.element);
    float sum = 0;
    for (Int j = 0; j < parameters.count; ++j) {
      sum = fmaf(parameters.coordinates[at.point * parameters.count + j], z[(j + 1) * next], sum);
    }
    const Channel channel = channel_at(finish, parameters, at.point, at.element % outputs);
    out.at(at.point, at.sample)[at.element] =
        finished(finish, channel, z[0] + sum, at.point, at.sample, at.element);
  }
}

template <typename Directions>
__global__ void __launch_bounds__(kLayerThreads)
    pointwise_kernel(Extent extent, Rows<const float> in, Parameters<Directions> parameters,
                     Int inner, Rows<float> out, Finish finish) {
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const Channel channel = channel_at(finish, parameters, at.point, at.element / inner);
    const float x = in.at(at.point, at.sample)[at.element];
    out.at(at.point, at.sample)[at.element] =
        finished(finish, channel, x, at.point, at.sample, at.element);
  }
}

__global__ void __launch_bounds__(kLayerThreads)
    binary_kernel(Extent extent, Binary step, Rows<const float> left, Rows<const float> right,
                  Global<const std::int32_t> indices, Rows<float> out, Finish finish) {
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const Int l = step.left_map == kNone ? at.element : indices[step.left_map + at.element];
    const Int r = step.right_map == kNone ? at.element : indices[step.right_map + at.element];
    const float a = left.at(at.point, at.sample)[l], b = right.at(at.point, at.sample)[r];
    const float value = step.operation == BinaryKind::add        ? a + b
                        : step.operation == BinaryKind::subtract ? a - b
                                                                 : a * b;
    out.at(at.point, at.sample)[at.element] =
        finished(finish, {1.0f, 0.0f}, value, at.point, at.sample, at.element);
  }
}

// `extent.size` counts pairs.
__global__ void __launch_bounds__(kLayerThreads)
    gather_kernel(Extent extent, Rows<const float> in, Global<const std::int32_t> pairs,
                  Rows<float> out) {
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const Int to = pairs[2 * at.element], from = pairs[2 * at.element + 1];
    out.at(at.point, at.sample)[to] = from < 0 ? 0.0f : in.at(at.point, at.sample)[from];
  }
}

// The largest, or the mean, of windows. What lies outside the image is left out of a maximum.
template <bool kMax>
__global__ void __launch_bounds__(kLayerThreads)
    pool_kernel(Extent extent, Pool step, Rows<const float> in, Rows<float> out) {
  const int out_w = static_cast<int>(step.out_w), pixels = static_cast<int>(step.out_h) * out_w;
  const int in_h = static_cast<int>(step.in_h), in_w = static_cast<int>(step.in_w);
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const int channel = static_cast<int>(at.element) / pixels;
    const int pixel = static_cast<int>(at.element) % pixels;
    const int top = pixel / out_w * static_cast<int>(step.stride_h) - static_cast<int>(step.pad_h);
    const int start =
        pixel % out_w * static_cast<int>(step.stride_w) - static_cast<int>(step.pad_w);
    const Global<const float> image = in.at(at.point, at.sample) + Int{channel} * in_h * in_w;
    float value = kMax ? -INFINITY : 0.0f;
    int inside = 0, padded = 0;
    for (int i = 0; i < step.kernel_h; ++i) {
      for (int j = 0; j < step.kernel_w; ++j) {
        const int y = top + i * static_cast<int>(step.dilation_h);
        const int x = start + j * static_cast<int>(step.dilation_w);
        // windows may overhang the padding: elements beyond it count nowhere
        padded += y < in_h + step.pad_h && x < in_w + step.pad_w;
        if (y < 0 || x < 0 || y >= in_h || x >= in_w) continue;
        ++inside;
        const float element = image[y * in_w + x];
        if (kMax) {
          value = element > value || element != element ? element : value;
        } else {
          value += element;
        }
      }
    }
    if (!kMax) {
      const Int count = step.divisor ? step.divisor : step.count_padding ? padded : inside;
      value /= static_cast<float>(count);
    }
    out.at(at.point, at.sample)[at.element] = value;
  }
}

// Means over a grid of windows that cover the image.
__global__ void __launch_bounds__(kLayerThreads)
    adaptive_pool_kernel(Extent extent, Pool step, Rows<const float> in, Rows<float> out) {
  const int out_h = static_cast<int>(step.out_h), out_w = static_cast<int>(step.out_w);
  const int in_h = static_cast<int>(step.in_h), in_w = static_cast<int>(step.in_w);
  for (unsigned work = layer_thread(); work < extent.work(); work += layer_threads()) {
    const Place at(extent, work);
    const int element = static_cast<int>(at.element);
    const int channel = element / (out_h * out_w), row = element / out_w % out_h;
    const int column = element % out_w;
    const int top = row * in_h / out_h, bottom = ((row + 1) * in_h + out_h - 1) / out_h;
    const int left = column * in_w / out_w, right = ((column + 1) * in_w + out_w - 1) / out_w;
    const Global<const float> image = in.at(at.point, at.sample) + Int{channel} * in_h * in_w;
    float sum = 0;
    for (int y = top; y < bottom; ++y) {
      for (int x = left; x < right; ++x) sum += image[y * in_w + x];
    }
    out.at(at.point, at.sample)[at.element] =
        sum / static_cast<float>((bottom - top) * (right - left));
  }
}

// A warp per group of a sample: two passes, sums in float64. `extent.size` counts groups.
template <typename Directions>
__global__ void __launch_bounds__(kLayerThreads)
    normalize_kernel(Extent extent, Normalize step, Int length, Rows<const float> in,
                     Parameters<Directions> parameters, Global<const float> constants,
                     Rows<float> out) {
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned work = layer_thread() / kWarp; work < extent.work();
       work += layer_threads() / kWarp) {
    const Place at(extent, work);
    const Int first = Int{at.element} * length;
    const Global<const float> x = in.at(at.point, at.sample) + first;
    double sum = 0;
    for (Int i = lane; i < length; i += kWarp) sum += x[i];
    const double mean = __shfl_sync(kAllLanes, warp_sum(sum), 0) / static_cast<double>(length);
    double squares = 0;
    for (Int i = lane; i < length; i += kWarp) squares += (x[i] - mean) * (x[i] - mean);
    const double variance =
        __shfl_sync(kAllLanes, warp_sum(squares), 0) / static_cast<double>(length);
    const auto factor = static_cast<float>(1.0 / sqrt(variance + constants[step.epsilon]));
    for (Int i = lane; i < length; i += kWarp) {
      const Int parameter = (first + i) % step.modulus / step.inner;
      const float gamma = step.weight == kNone
                              ? 1.0f
                              : parameters.at(Role::gamma, at.point, step.weight + parameter);
      const float beta =
          step.bias == kNone ? 0.0f : parameters.at(Role::beta, at.point, step.bias + parameter);
      const float centred = static_cast<float>(x[i] - mean);
      out.at(at.point, at.sample)[first + i] = fmaf(centred * factor, gamma, beta);
    }
  }
}

inline unsigned layer_blocks(Int work) { return blocks_for(work, kLayerThreads); }

}  // namespace pylandscape::cuda
