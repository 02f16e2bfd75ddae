// perturb: points [K, P] = center [P] + coordinates [K, D] . directions [D, P], one pass over
// memory. The directions are stored, or (perturb.random) generated: element p of direction d is
// scales[d, filter of p] * element p of the normal stream of seeds[d].
//
// A block of columns of the centre and of all directions is brought into the cache once and serves
// all K points. Elements are computed one by one in a fixed order of operations, so the result is
// the same bits for every instruction set and number of threads, and for stored and generated
// directions alike.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "common/filters.h"
#include "common/parallel.h"

#define PYLANDSCAPE_KERNELS "cpu/perturb.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kBlock = 2048;  // columns; a multiple of 4, where the generator starts
constexpr std::int64_t kNormalPadding = 32;

template <typename T>
void perturb_stored(const Tensor& points, const Tensor& center, const Tensor& directions,
                    const Tensor& coordinates) {
  const std::int64_t size = center.numel();
  const std::int64_t count = directions.size(0);
  const std::int64_t rows = coordinates.size(0);
  const T* w = center.const_data_ptr<T>();
  const T* d = directions.const_data_ptr<T>();
  const T* c = coordinates.const_data_ptr<T>();
  T* out = points.mutable_data_ptr<T>();
  const auto kernel = PYLANDSCAPE_DISPATCH(perturb_block<T>);
  parallel_blocks(divide_up(size, kBlock), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t begin = first * kBlock; begin < std::min(last * kBlock, size);
         begin += kBlock) {
      const std::int64_t columns = std::min(kBlock, size - begin);
      kernel(w + begin, d + begin, size, count, c, rows, out + begin, size, columns);
    }
  });
}

template <typename T>
void perturb_generated(const Tensor& points, const Tensor& center, const Tensor& seeds,
                       const Tensor& scales, const FilterTable& table, const Tensor& coordinates) {
  const std::int64_t size = center.numel();
  const std::int64_t count = seeds.numel();
  const std::int64_t rows = coordinates.size(0);
  const T* w = center.const_data_ptr<T>();
  const auto* seed = seeds.const_data_ptr<std::int64_t>();
  const double* scale = scales.const_data_ptr<double>();
  const T* c = coordinates.const_data_ptr<T>();
  T* out = points.mutable_data_ptr<T>();
  const auto kernel = PYLANDSCAPE_DISPATCH(perturb_block<T>);
  const auto generate = PYLANDSCAPE_DISPATCH(scaled_normals<T>);
  parallel_blocks(divide_up(size, kBlock), [&](std::int64_t first, std::int64_t last) {
    std::vector<float> normals(kBlock + kNormalPadding);
    std::vector<T> directions(count * kBlock);
    const FilterTensor* tensor = table.tensors.data();
    for (std::int64_t begin = first * kBlock; begin < std::min(last * kBlock, size);
         begin += kBlock) {
      const std::int64_t columns = std::min(kBlock, size - begin);
      while (tensor->end() <= begin) ++tensor;
      for (std::int64_t j = 0; j < count; ++j) {
        generate(static_cast<std::uint64_t>(seed[j]), begin, columns, tensor,
                 scale + j * table.filters, normals.data(), directions.data() + j * kBlock);
      }
      kernel(w + begin, directions.data(), kBlock, count, c, rows, out + begin, size, columns);
    }
  });
}

void perturb_cpu(const Tensor& points, const Tensor& center, const Tensor& directions,
                 const Tensor& coordinates) {
  if (center.scalar_type() == ScalarType::Float) {
    perturb_stored<float>(points, center, directions, coordinates);
  } else {
    perturb_stored<double>(points, center, directions, coordinates);
  }
}

void perturb_random_cpu(const Tensor& points, const Tensor& center, const Tensor& seeds,
                        const Tensor& scales, const Tensor& filter_table,
                        const Tensor& coordinates) {
  const FilterTable table = read_filter_table("perturb", filter_table);
  require_covers("perturb", table, center.numel(), scales.size(1));
  if (center.scalar_type() == ScalarType::Float) {
    perturb_generated<float>(points, center, seeds, scales, table, coordinates);
  } else {
    perturb_generated<double>(points, center, seeds, scales, table, coordinates);
  }
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("perturb", TORCH_BOX(&perturb_cpu));
  m.impl("perturb.random", TORCH_BOX(&perturb_random_cpu));
}

}  // namespace
}  // namespace pylandscape
