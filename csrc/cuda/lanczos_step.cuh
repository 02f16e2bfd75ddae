// lanczos_step: classical Gram-Schmidt twice, in three sweeps over the basis as on the CPU:
//   1  c = V w
//   2  w -= V^T c,  d = V w
//   3  w -= V^T d,  |w|^2
// A block owns a tile of columns: it keeps its part of w in shared memory in float64 and its warps
// share out the rows, so that a dot product costs one reduction per row and tile. Between two
// sweeps a small kernel adds the tiles in order. Everything stays on the device, the coefficients,
// beta and whether it is a breakdown included; no result depends on the order of the blocks.

#pragma once

#include "cuda/device.cuh"

namespace pylandscape::cuda {

inline constexpr int kTile = 1024;  // columns per block
inline constexpr int kTileThreads = 256;
inline constexpr double kLargest = 1.7976931348623157e308;
inline constexpr double kSmallestNormal = 2.2250738585072014e-308;

// What a sweep does besides the dot products.
enum class Sweep { first, second, last };

// partial [tiles][rows + 1]: dot products of the tile with each row, and its sum of squares.
// Before that, but in the first sweep, vector -= basis^T coefficients.
template <Sweep kSweep, typename T>
__global__ void __launch_bounds__(kTileThreads)
    sweep_kernel(Global<const T> basis, Int rows, Int size, Global<const double> coefficients,
                 Global<T> vector, Global<double> partial) {
  __shared__ Shared<double> tile[kTile];
  const Int begin = Int{blockIdx.x} * kTile;
  const int columns = static_cast<int>(least(kTile, size - begin));
  for (int c = threadIdx.x; c < columns; c += kTileThreads) {
    double value = static_cast<double>(vector[begin + c]);
    if (kSweep != Sweep::first) {
      double inside = 0;
      for (Int r = 0; r < rows; ++r) {
        inside = fma(coefficients[r], static_cast<double>(basis[r * size + begin + c]), inside);
      }
      const T rounded = static_cast<T>(value - inside);
      vector[begin + c] = rounded;
      value = static_cast<double>(rounded);
    }
    tile[c] = value;
  }
  __syncthreads();

  const int lane = threadIdx.x % kWarp;
  const Int dots = kSweep == Sweep::last ? 0 : rows;
  for (Int r = threadIdx.x / kWarp; r <= dots; r += kTileThreads / kWarp) {
    double sum = 0;
    for (int c = lane; c < columns; c += kWarp) {
      const double w = tile[c];
      sum = fma(r < dots ? static_cast<double>(basis[r * size + begin + c]) : w, w, sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[blockIdx.x * (rows + 1) + (r < dots ? r : rows)] = sum;
  }
}

// sums [first_row, rows] over the tiles, a warp per number: in order within lanes, then over the
// lanes.
__global__ void __launch_bounds__(kTileThreads)
    add_tiles_kernel(Global<const double> partial, Int tiles, Int rows, Int first_row,
                     Global<double> sums) {
  const int lane = threadIdx.x % kWarp;
  const Int r = first_row + grid_thread() / kWarp;
  if (r > rows) return;
  double sum = 0;
  for (Int t = lane; t < tiles; t += kWarp) sum += partial[t * (rows + 1) + r];
  sum = warp_sum(sum);
  if (lane == 0) sums[r] = sum;
}

// One block: the coefficients of both sweeps, beta, the largest product so far, and whether the
// step broke down. NaN and infinity count as breakdown.
__global__ void __launch_bounds__(kTileThreads)
    decide_kernel(Global<const double> first, Global<const double> second, Int rows,
                  double tolerance, Global<double> scale, Global<double> coefficients,
                  Global<double> beta, Global<bool> breakdown) {
  for (Int r = threadIdx.x; r < rows; r += kTileThreads) coefficients[r] = first[r] + second[r];
  if (threadIdx.x == 0) {
    const double norm = sqrt(first[rows]), left = sqrt(second[rows]);
    if (norm > *scale) *scale = norm;
    const double relative = tolerance * *scale;
    const double limit = relative > kSmallestNormal ? relative : kSmallestNormal;
    *beta = left;
    *breakdown = !(left > limit && left <= kLargest);
  }
}

// The next row, unless the step broke down.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    next_row_kernel(Global<const T> vector, Int size, Global<const double> beta,
                    Global<const bool> breakdown, Global<T> next) {
  if (*breakdown) return;
  const double factor = 1 / *beta;
  for (Int i = grid_thread(); i < size; i += grid_threads()) {
    next[i] = static_cast<T>(static_cast<double>(vector[i]) * factor);
  }
}

// Doubles of scratch for a step with `rows` rows: partial sums and two sets of sums.
inline Int lanczos_scratch(Int rows, Int size) { return (divide_up(size, kTile) + 2) * (rows + 1); }

// `rows` rows of the basis [M, P] against vector [P]; row `rows` is written. coefficients [rows].
template <typename T, typename Launch>
void lanczos_step(const Launch& launch, Global<T> basis, Int rows, Int size, Global<T> vector,
                  double tolerance, Global<double> scratch, Global<double> scale,
                  Global<double> coefficients, Global<double> beta, Global<bool> breakdown) {
  const Int tiles = divide_up(size, kTile);
  const Int width = rows + 1;
  const Global<double> first = scratch, second = scratch + width, partial = scratch + 2 * width;
  const auto blocks = static_cast<unsigned>(tiles);
  const Global<const T> read = basis;
  const auto sweep = [&](auto name, auto kernel, Global<const double> inside) {
    if (tiles > 0) {
      launch(name, kernel, blocks, kTileThreads, read, rows, size, inside, vector, partial);
    }
  };
  const auto add_tiles = [&](Int first_row, Global<double> sums) {
    launch(PYLANDSCAPE_KERNEL(add_tiles_kernel),
           blocks_for((width - first_row) * kWarp, kTileThreads), kTileThreads, partial, tiles,
           rows, first_row, sums);
  };
  sweep(PYLANDSCAPE_KERNEL(sweep_kernel<Sweep::first, T>), first);
  add_tiles(0, first);
  sweep(PYLANDSCAPE_KERNEL(sweep_kernel<Sweep::second, T>), first);
  add_tiles(0, second);
  sweep(PYLANDSCAPE_KERNEL(sweep_kernel<Sweep::last, T>), second);
  add_tiles(rows, second);
  launch(PYLANDSCAPE_KERNEL(decide_kernel), 1, kTileThreads, first, second, rows, tolerance, scale,
         coefficients, beta, breakdown);
  if (size > 0) {
    launch(PYLANDSCAPE_KERNEL(next_row_kernel<T>), blocks_for(size, kTileThreads), kTileThreads,
           vector, size, beta, breakdown, basis + rows * size);
  }
}

}  // namespace pylandscape::cuda
