// Warp matrix operations. Which lane holds which element of a fragment is not specified; here every
// lane holds the whole of a factor and eight elements of an accumulator, `kRows` rows apart.

#pragma once

#include "warp.h"

namespace simt {

// A float whose significand has `kBits` explicit bits, rounded to nearest; ties to even, or away
// from zero as the conversion to TF32 has it.
inline float rounded(float x, int bits, bool ties_away) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;
  const std::uint32_t dropped = 23 - bits, half = 1u << (dropped - 1);
  u += ties_away ? half : half - 1 + (u >> dropped & 1);
  u &= ~((1u << dropped) - 1);
  std::memcpy(&x, &u, 4);
  return x;
}

}  // namespace simt

struct __nv_bfloat16 {
  float value;
  operator float() const { return value; }
};
inline __nv_bfloat16 __float2bfloat16(float x) { return {simt::rounded(x, 7, false)}; }

namespace nvcuda::wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

inline float __float_to_tf32(float x) { return simt::rounded(x, 10, true); }

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int kSize = kRows * kColumns;
  static constexpr bool kIsSum = std::is_same_v<Use, accumulator>;
  static constexpr int num_elements = kIsSum ? kSize / 32 : kSize;
  using Element = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
  Element x[num_elements];
};

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, Value value) {
  for (auto& element : f.x) element = value;
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Pointer>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const Pointer& from, unsigned pitch,
                      simt::Where where = simt::Where::current()) {
  using Fragment = fragment<Use, M, N, K, T, Layout>;
  static_assert(!Fragment::kIsSum);
  __syncwarp(~0u, where);
  for (int r = 0; r < Fragment::kRows; ++r) {
    for (int c = 0; c < Fragment::kColumns; ++c) {
      const bool by_row = std::is_same_v<Layout, row_major>;
      f.x[r * Fragment::kColumns + c] = by_row ? from[r * pitch + c] : from[c * pitch + r];
    }
  }
}

template <int M, int N, int K, typename T, typename La, typename Lb>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, La>& a,
              const fragment<matrix_b, M, N, K, T, Lb>& b,
              const fragment<accumulator, M, N, K, float>& c,
              simt::Where where = simt::Where::current()) {
  __syncwarp(~0u, where);
  for (int i = 0; i < d.num_elements; ++i) {
    const int at = i * 32 + simt::thread().lane, row = at / N, column = at % N;
    float sum = c.x[i];
    for (int k = 0; k < K; ++k) {
      sum += static_cast<float>(a.x[row * K + k]) * static_cast<float>(b.x[k * N + column]);
    }
    d.x[i] = sum;
  }
}

template <int M, int N, int K, typename Pointer>
void store_matrix_sync(const Pointer& to, const fragment<accumulator, M, N, K, float>& f,
                       unsigned pitch, layout_t layout,
                       simt::Where where = simt::Where::current()) {
  __syncwarp(~0u, where);
  for (int i = 0; i < f.num_elements; ++i) {
    const int at = i * 32 + simt::thread().lane, row = at / N, column = at % N;
    to[layout == mem_row_major ? row * pitch + column : column * pitch + row] = f.x[i];
  }
}

}  // namespace nvcuda::wmma
