// The filter table: which filter each element of the flat parameter vector belongs to.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "common/check.h"

namespace pylandscape {

// Element (o, r, i) lies at offset + (o * rows + r) * inner + i and belongs to filter
// first_filter + r.
struct FilterTensor {
  std::int64_t offset, outer, rows, inner, first_filter;

  std::int64_t end() const { return offset + outer * rows * inner; }
};

struct FilterTable {
  std::vector<FilterTensor> tensors;  // in order of offset; together they cover [0, size)
  std::int64_t size = 0;
  std::int64_t filters = 0;
};

// Reads an int64 tensor [T, 4] of rows (offset, outer, rows, inner). Throws in the name of
// `function` if they do not cover a vector without gaps, in order.
inline FilterTable read_filter_table(const char* function, const torch::stable::Tensor& tensor) {
  const std::int64_t* row = tensor.const_data_ptr<std::int64_t>();
  FilterTable table;
  for (std::int64_t t = 0; t < tensor.size(0); ++t, row += 4) {
    const auto [offset, outer, rows, inner] = std::tuple(row[0], row[1], row[2], row[3]);
    require(offset == table.size && outer >= 0 && rows >= 0 && inner >= 0, function,
            ": filter_table must hold rows (offset, outer, rows, inner) that follow each other ",
            "without gaps, got (", offset, ", ", outer, ", ", rows, ", ", inner, ") where offset ",
            table.size, " was expected");
    table.tensors.push_back({offset, outer, rows, inner, table.filters});
    table.size += outer * rows * inner;
    table.filters += rows;
  }
  return table;
}

// Throws in the name of `function` unless the table is one for so many parameters and filters.
inline void require_covers(const char* function, const FilterTable& table, std::int64_t size,
                           std::int64_t filters) {
  require(table.size == size && table.filters == filters, function, ": filter_table must describe ",
          size, " parameters and ", filters, " filters, got ", table.size, " and ", table.filters);
}

}  // namespace pylandscape
