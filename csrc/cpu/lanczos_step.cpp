// lanczos_step(basis [M, P], product [P], step j): orthogonalises product = H v_j against the rows
// 0..j of the basis, twice, and writes what is left, normalised, into row j + 1.
//
// Classical Gram-Schmidt done twice: the three-term recurrence is contained in it, as the
// coefficient of row j is alpha and that of row j - 1 is the last beta. Each sweep goes over tiles
// of columns that stay in the cache for all rows, so that the first update and the second set of
// dot products share one reading of the basis: three readings in all, one over
//   1  c = V w
//   2  w -= V^T c,  d = V w
//   3  w -= V^T d,  |w|^2
// `scale`, a lower bound on |H|, is raised to |H v_j|; what is left counts as nothing beside it.
// Dot products are summed in float64, within tiles and then over the tiles in order, whatever the
// number of threads or the instruction set.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <tuple>
#include <vector>

#include "common/parallel.h"

#define PYLANDSCAPE_KERNELS "cpu/lanczos_step.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::uint64_t kTileBytes = 1 << 18;  // of the basis; larger tiles were slower here
constexpr std::uint64_t kMinColumns = 256;
constexpr std::uint64_t kMaxColumns = 4096;

// Calls work(tile, first column, columns, float64 scratch of that size) for all tiles.
template <typename Work>
void for_each_tile(std::int64_t size, std::int64_t tile_columns, const Work& work) {
  parallel_blocks(divide_up(size, tile_columns), [&](std::int64_t first, std::int64_t last) {
    std::vector<double> wide(tile_columns);
    for (std::int64_t tile = first; tile < last; ++tile) {
      const std::int64_t begin = tile * tile_columns;
      work(tile, begin, std::min(tile_columns, size - begin), wide.data());
    }
  });
}

// The sums over all tiles of `count` numbers each.
std::vector<double> sum_tiles(const std::vector<double>& tiles, std::int64_t count) {
  std::vector<double> sums(count);
  for (std::size_t i = 0; i < tiles.size(); i += count) {
    for (std::int64_t k = 0; k < count; ++k) sums[k] += tiles[i + k];
  }
  return sums;
}

struct Step {
  double product_norm;  // |H v_j|
  double beta;          // of what is left of it
};

// Orthogonalises w against `rows` rows of the basis and adds up the coefficients.
template <typename T>
Step orthogonalize(const T* basis, T* w, std::int64_t rows, std::int64_t size,
                   double* coefficients) {
  const std::uint64_t fitting = std::bit_floor(kTileBytes / (rows * sizeof(T)));
  const auto columns = static_cast<std::int64_t>(std::clamp(fitting, kMinColumns, kMaxColumns));
  const std::int64_t tiles = divide_up(size, columns);
  const auto dot = PYLANDSCAPE_DISPATCH(dot_tile<false, T>);
  const auto dot_again = PYLANDSCAPE_DISPATCH(dot_tile<true, T>);
  const auto subtract = PYLANDSCAPE_DISPATCH(subtract_tile<false, T>);
  const auto subtract_first = PYLANDSCAPE_DISPATCH(subtract_tile<true, T>);
  const auto to_wide = PYLANDSCAPE_DISPATCH(widen<T>);
  const auto norm2 = PYLANDSCAPE_DISPATCH(sum_of_squares);

  std::vector<double> dots(tiles * rows);
  std::vector<double> squares(tiles);
  for_each_tile(size, columns,
                [&](std::int64_t tile, std::int64_t begin, std::int64_t width, double* wide) {
                  to_wide(w + begin, width, wide);
                  squares[tile] = norm2(wide, width);
                  dot(basis + begin, size, rows, width, wide, &dots[tile * rows]);
                });
  const std::vector<double> first = sum_tiles(dots, rows);
  const double product_norm = std::sqrt(sum_tiles(squares, 1)[0]);

  for_each_tile(size, columns,
                [&](std::int64_t tile, std::int64_t begin, std::int64_t width, double* wide) {
                  subtract_first(basis + begin, size, rows, width, first.data(), w + begin, wide);
                  dot_again(basis + begin, size, rows, width, wide, &dots[tile * rows]);
                });
  const std::vector<double> second = sum_tiles(dots, rows);

  for_each_tile(size, columns,
                [&](std::int64_t tile, std::int64_t begin, std::int64_t width, double* wide) {
                  subtract(basis + begin, size, rows, width, second.data(), w + begin, wide);
                  squares[tile] = norm2(wide, width);
                });
  for (std::int64_t r = 0; r < rows; ++r) coefficients[r] = first[r] + second[r];
  return {product_norm, std::sqrt(sum_tiles(squares, 1)[0])};
}

template <typename T>
Step step_in(const Tensor& basis, const Tensor& product, std::int64_t step, double* coefficients,
             double* scale, double tolerance, bool* breakdown) {
  const std::int64_t size = product.numel();
  T* rows = basis.mutable_data_ptr<T>();
  T* w = product.mutable_data_ptr<T>();
  const Step done = orthogonalize(rows, w, step + 1, size, coefficients);
  // NaN and infinity count as breakdown: no row can be written
  *scale = std::max(*scale, done.product_norm);
  const double least = std::max(tolerance * *scale, DBL_MIN);
  *breakdown = !(done.beta > least && done.beta <= DBL_MAX);
  if (!*breakdown) {
    const auto scale_kernel = PYLANDSCAPE_DISPATCH(scale_columns<T>);
    T* next = rows + (step + 1) * size;
    for_each_tile(size, kMaxColumns,
                  [&](std::int64_t, std::int64_t begin, std::int64_t width, double*) {
                    scale_kernel(w + begin, width, 1 / done.beta, next + begin);
                  });
  }
  return done;
}

std::tuple<Tensor, Tensor, Tensor> lanczos_step_cpu(const Tensor& basis, const Tensor& product,
                                                    std::int64_t step, const Tensor& scale,
                                                    double tolerance) {
  Tensor coefficients = torch::stable::new_empty(product, {step + 1}, ScalarType::Double);
  Tensor beta = torch::stable::new_empty(product, {}, ScalarType::Double);
  Tensor breakdown = torch::stable::new_empty(product, {}, ScalarType::Bool);
  double* c = coefficients.mutable_data_ptr<double>();
  bool* broken = breakdown.mutable_data_ptr<bool>();
  double* size = scale.mutable_data_ptr<double>();
  const Step done = product.scalar_type() == ScalarType::Float
                        ? step_in<float>(basis, product, step, c, size, tolerance, broken)
                        : step_in<double>(basis, product, step, c, size, tolerance, broken);
  *beta.mutable_data_ptr<double>() = done.beta;
  return {coefficients, beta, breakdown};
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("lanczos_step", TORCH_BOX(&lanczos_step_cpu));
}

}  // namespace
}  // namespace pylandscape
