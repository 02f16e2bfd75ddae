// What kernels are written with. Under nvcc these are CUDA's own words and plain pointers; under
// g++ tests/simt/simt.h gives the same words a meaning, with pointers and shared memory that watch
// how they are used. Kernels name every pointer into global memory Global<T> and every element of
// shared memory Shared<T>.
//
// A .cuh file holds kernels and, for each operator, one function over a `Launch`: how many blocks
// of which kernel in which order. It is called by the .cu file and by the tests.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <mma.h>

namespace pylandscape::cuda {
template <typename T>
using Global = T*;
template <typename T>
using Shared = T;
}  // namespace pylandscape::cuda
#else
#include "simt.h"

namespace pylandscape::cuda {
using simt::Global;
using simt::Shared;
}  // namespace pylandscape::cuda
#endif

// A kernel with its name, for launch(PYLANDSCAPE_KERNEL(kernel), grid, block, arguments...).
#define PYLANDSCAPE_KERNEL(...) #__VA_ARGS__, &__VA_ARGS__

namespace pylandscape::cuda {

using Int = std::int64_t;

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr Int kMaxBlocks = 1 << 16;  // of a kernel that strides over its grid

__host__ __device__ inline Int divide_up(Int a, Int b) { return (a + b - 1) / b; }
__host__ __device__ inline Int least(Int a, Int b) { return a < b ? a : b; }

// Blocks for `work` threads in all; the kernel strides over what they leave.
inline unsigned blocks_for(Int work, Int threads) {
  return static_cast<unsigned>(least(divide_up(work, threads), kMaxBlocks));
}

// This thread's number in the grid, and how many there are.
__device__ inline Int grid_thread() { return Int{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline Int grid_threads() { return Int{gridDim.x} * blockDim.x; }

// The sum over a warp in a fixed order, in lane 0.
__device__ inline double warp_sum(double value) {
  for (int width = kWarp / 2; width > 0; width /= 2) {
    value += __shfl_down_sync(kAllLanes, value, width);
  }
  return value;
}

}  // namespace pylandscape::cuda
