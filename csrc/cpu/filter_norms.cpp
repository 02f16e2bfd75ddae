// filter_norms(vector [P], filter_table) -> [F] float64: the Euclidean norm of every filter in one
// pass. filter_norms.random(seeds [D], filter_table) -> [D, F]: the same of the normal streams,
// which are generated and never stored.
//
// A run, the `inner` elements of one filter that lie together, is cut into chunks of kChunk
// elements if it is longer; the sums of chunks, and of the `outer` runs of a filter, are added in
// order. So the result does not depend on how the work is shared out.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/filters.h"
#include "common/parallel.h"

#define PYLANDSCAPE_KERNELS "cpu/filter_norms.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kChunk = 4096;
constexpr std::int64_t kUnit = 4 * kChunk;   // elements of a piece of work, about
constexpr std::int64_t kSpan = 1024;         // elements that lie together, at least, if they can
constexpr std::int64_t kNormalPadding = 36;  // for add_normal_squares

// A piece of work: for each o < outer, `rows` runs of `inner` elements from first + o * pitch on.
// Whole filters, from `filter` on; or, if `chunk`, a part of one.
struct Unit {
  std::int64_t first, outer, pitch, rows, inner, filter;
  bool chunk;
};

std::vector<Unit> plan_work(const FilterTable& table) {
  std::vector<Unit> units;
  for (const auto& [offset, outer, rows, inner, first_filter] : table.tensors) {
    if (inner > kChunk) {
      for (std::int64_t run = 0; run < outer * rows; ++run) {
        for (std::int64_t begin = 0; begin < inner; begin += kChunk) {
          units.push_back({offset + run * inner + begin, 1, 0, 1, std::min(kChunk, inner - begin),
                           first_filter + run % rows, true});
        }
      }
    } else if (outer * inner > 0) {
      const std::int64_t group =
          std::max({std::int64_t{1}, kUnit / (outer * inner), kSpan / inner});
      for (std::int64_t row = 0; row < rows; row += group) {
        units.push_back({offset + row * inner, outer, rows * inner, std::min(group, rows - row),
                         inner, first_filter + row, false});
      }
    }
  }
  return units;
}

// The norms of all filters. In each thread, `make_add()` gives a function add(first, rows, inner,
// sums) that adds to sums[r] the squares of the r-th of `rows` runs from element `first` on.
template <typename MakeAdd>
void norms(const FilterTable& table, const std::vector<Unit>& units, double* out,
           const MakeAdd& make_add) {
  std::fill(out, out + table.filters, 0.0);
  std::vector<double> chunks(units.size());
  parallel_blocks(units.size(), [&](std::int64_t first, std::int64_t last) {
    auto add = make_add();
    for (std::int64_t u = first; u < last; ++u) {
      const Unit& unit = units[u];
      double* sums = unit.chunk ? &chunks[u] : out + unit.filter;
      for (std::int64_t o = 0; o < unit.outer; ++o) {
        add(unit.first + o * unit.pitch, unit.rows, unit.inner, sums);
      }
    }
  });
  for (std::size_t u = 0; u < units.size(); ++u) {
    if (units[u].chunk) out[units[u].filter] += chunks[u];
  }
  for (std::int64_t f = 0; f < table.filters; ++f) out[f] = std::sqrt(out[f]);
}

template <typename T>
void norms_of(const Tensor& vector, const FilterTable& table, const Tensor& out) {
  const auto kernel = PYLANDSCAPE_DISPATCH(add_squares<T>);
  const T* data = vector.const_data_ptr<T>();
  norms(table, plan_work(table), out.mutable_data_ptr<double>(), [&] {
    return [=](std::int64_t first, std::int64_t rows, std::int64_t inner, double* sums) {
      kernel(data + first, rows, inner, sums);
    };
  });
}

Tensor filter_norms_cpu(const Tensor& vector, const Tensor& filter_table) {
  const FilterTable table = read_filter_table("filter_norms", filter_table);
  require(table.size == vector.numel(), "filter_norms: filter_table must describe ", vector.numel(),
          " parameters, got ", table.size);
  Tensor out = torch::stable::new_empty(vector, {table.filters}, ScalarType::Double);
  if (vector.scalar_type() == ScalarType::Float) {
    norms_of<float>(vector, table, out);
  } else {
    norms_of<double>(vector, table, out);
  }
  return out;
}

Tensor filter_norms_random_cpu(const Tensor& seeds, const Tensor& filter_table) {
  const FilterTable table = read_filter_table("filter_norms", filter_table);
  const std::vector<Unit> units = plan_work(table);
  Tensor out = torch::stable::new_empty(seeds, {seeds.numel(), table.filters}, ScalarType::Double);
  const auto* seed = seeds.const_data_ptr<std::int64_t>();
  const auto kernel = PYLANDSCAPE_DISPATCH(add_normal_squares);
  for (std::int64_t d = 0; d < seeds.numel(); ++d) {
    const auto stream = static_cast<std::uint64_t>(seed[d]);
    norms(table, units, out.mutable_data_ptr<double>() + d * table.filters, [&] {
      return [=, normals = std::vector<float>(kUnit + kNormalPadding)](
                 std::int64_t first, std::int64_t rows, std::int64_t inner, double* sums) mutable {
        kernel(stream, first, rows, inner, normals.data(), sums);
      };
    });
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("filter_norms", TORCH_BOX(&filter_norms_cpu));
  m.impl("filter_norms.random", TORCH_BOX(&filter_norms_random_cpu));
}

}  // namespace
}  // namespace pylandscape
