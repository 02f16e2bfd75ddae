// perturb: points = center + coordinates . directions, the sum first, as on the CPU and to the same
// bits. A thread owns columns: one of stored directions, or the four of one Philox block of
// generated ones. It goes through the points a few at a time, so that the centre is read once and
// the directions come from the cache; all accesses of a warp lie side by side.

#pragma once

#include "cuda/filters.cuh"
#include "cuda/normal.cuh"

namespace pylandscape::cuda {

inline constexpr int kPointsAtOnce = 8;

// Writes points k, k + 1, ... of a column; `sums` are those of its directions.
template <int kColumns, typename T>
__device__ inline void write_points(const T (&center)[kColumns],
                                    const T (&sums)[kPointsAtOnce][kColumns], Int k, Int points,
                                    Int column, Int size, Global<T> out) {
#pragma unroll
  for (int p = 0; p < kPointsAtOnce; ++p) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (k + p < points && column + i < size) {
        out[(k + p) * size + column + i] = center[i] + sums[p][i];
      }
    }
  }
}

// The directions' part of a few points: the first term is not added to zero, which would turn -0
// into 0.
template <int kColumns, typename T>
__device__ inline void add_direction(T (&sums)[kPointsAtOnce][kColumns],
                                     const T (&direction)[kColumns], Int j,
                                     Global<const T> coordinates, Int count, Int k, Int points) {
#pragma unroll
  for (int p = 0; p < kPointsAtOnce; ++p) {
    const T c = k + p < points ? coordinates[(k + p) * count + j] : T(0);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T term = c * direction[i];
      sums[p][i] = j == 0 ? term : sums[p][i] + term;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(256, 3)
    perturb_kernel(Global<const T> center, Global<const T> directions, Int size, Int count,
                   Global<const T> coordinates, Int points, Global<T> out) {
  for (Int column = grid_thread(); column < size; column += grid_threads()) {
    const T at[1] = {center[column]};
    for (Int k = 0; k < points; k += kPointsAtOnce) {
      T sums[kPointsAtOnce][1];
      for (Int j = 0; j < count; ++j) {
        const T direction[1] = {directions[j * size + column]};
        add_direction(sums, direction, j, coordinates, count, k, points);
      }
      write_points(at, sums, k, points, column, size, out);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    perturb_random_kernel(Global<const T> center, Global<const Int> seeds,
                          Global<const double> scales, Int filters, FilterTable table, Int size,
                          Int count, Global<const T> coordinates, Int points, Global<T> out) {
  for (Int four = grid_thread(); 4 * four < size; four += grid_threads()) {
    const Int column = 4 * four;
    T at[4];
    Int filter[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Int inside = least(column + i, size - 1);
      at[i] = center[inside];
      filter[i] = table.filter_of(inside);
    }
    for (Int k = 0; k < points; k += kPointsAtOnce) {
      T sums[kPointsAtOnce][4];
      for (Int j = 0; j < count; ++j) {
        const Normals z =
            normals(static_cast<std::uint64_t>(seeds[j]), static_cast<std::uint64_t>(four));
        T direction[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          direction[i] = static_cast<T>(scales[j * filters + filter[i]]) * static_cast<T>(z.z[i]);
        }
        add_direction(sums, direction, j, coordinates, count, k, points);
      }
      write_points(at, sums, k, points, column, size, out);
    }
  }
}

// out [K, P] from stored directions [D, P], D >= 1.
template <typename T, typename Launch>
void perturb(const Launch& launch, Global<const T> center, Global<const T> directions, Int size,
             Int count, Global<const T> coordinates, Int points, Global<T> out) {
  if (size == 0 || points == 0) return;
  launch(PYLANDSCAPE_KERNEL(perturb_kernel<T>), blocks_for(size, 256), 256, center, directions,
         size, count, coordinates, points, out);
}

// The same from seeds [D] and scales [D, F]; the table covers the parameters.
template <typename T, typename Launch>
void perturb_random(const Launch& launch, Global<const T> center, Global<const Int> seeds,
                    Global<const double> scales, Int filters, FilterTable table, Int size,
                    Int count, Global<const T> coordinates, Int points, Global<T> out) {
  if (size == 0 || points == 0) return;
  launch(PYLANDSCAPE_KERNEL(perturb_random_kernel<T>), blocks_for(divide_up(size, 4), 256), 256,
         center, seeds, scales, filters, table, size, count, coordinates, points, out);
}

}  // namespace pylandscape::cuda
