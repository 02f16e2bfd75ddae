// CUDA's words for g++: with this header a .cuh file of csrc/cuda is ordinary C++ whose kernels run
// on the host, block by block. See docs/cuda.md for what it finds and what it cannot.

#pragma once

#include <cmath>

#include "wmma.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static
#define threadIdx (::simt::thread().index)
#define blockIdx (::simt::block().index)
#define blockDim (::simt::block().size)
#define gridDim (::simt::block().grid)
