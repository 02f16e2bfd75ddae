// The generator of common/philox.inc in a GPU's scalars: the same bits as on a CPU. Files that
// include it are compiled without contraction (nvcc -fmad=false).

#pragma once

#include <bit>

#include "cuda/device.cuh"

namespace pylandscape::cuda {
namespace generator {

using f32 = float;
using i32 = std::int32_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

#if defined(__CUDACC__)
__device__ inline u32 bits(f32 x) { return __float_as_uint(x); }
__device__ inline f32 from_bits(u32 x) { return __uint_as_float(x); }
#else
inline u32 bits(f32 x) { return std::bit_cast<u32>(x); }
inline f32 from_bits(u32 x) { return std::bit_cast<f32>(x); }
#endif
__device__ inline i32 as_signed(u32 x) { return static_cast<i32>(x); }
__device__ inline u32 as_unsigned(i32 x) { return static_cast<u32>(x); }
__device__ inline f32 to_float(i32 x) { return static_cast<f32>(x); }
__device__ inline f32 square_root(f32 x) { return sqrtf(x); }
__device__ inline u64 multiply_low_words(u64 a, u32 b) { return (a & 0xffffffffu) * b; }

#define PYLANDSCAPE_INLINE __device__ inline
#include "common/philox.inc"
#undef PYLANDSCAPE_INLINE

}  // namespace generator

struct Normals {
  float z[4];
};

// Elements 4 counter to 4 counter + 3 of the stream of `seed`.
__device__ inline Normals normals(std::uint64_t seed, std::uint64_t counter) {
  const generator::PhiloxBlock x = generator::philox(seed, counter);
  Normals result;
  generator::normal_pair(static_cast<std::uint32_t>(x.x0), static_cast<std::uint32_t>(x.x1),
                         result.z[0], result.z[1]);
  generator::normal_pair(static_cast<std::uint32_t>(x.x2), static_cast<std::uint32_t>(x.x3),
                         result.z[2], result.z[3]);
  return result;
}

// Element `i` alone: more than half of the work for all four of its block.
__device__ inline float normal(std::uint64_t seed, Int i) {
  const auto at = static_cast<std::uint64_t>(i);
  const generator::PhiloxBlock x = generator::philox(seed, at / 4);
  const bool late = (at & 2) != 0;
  float first, second;
  generator::normal_pair(static_cast<std::uint32_t>(late ? x.x2 : x.x0),
                         static_cast<std::uint32_t>(late ? x.x3 : x.x1), first, second);
  return (at & 1) != 0 ? second : first;
}

}  // namespace pylandscape::cuda
