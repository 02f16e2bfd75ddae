// The filter table on the device: rows (offset, outer, rows, inner, first_filter) of int64, as
// common/filters.h reads and checks it.

#pragma once

#include "cuda/device.cuh"

namespace pylandscape::cuda {

inline constexpr Int kTableRow = 5;

struct FilterTable {
  Global<const Int> rows;
  Int count;

  // The filter that element `i` belongs to; `i` lies in the table.
  __device__ Int filter_of(Int i) const {
    Int low = 0, high = count;  // the last row that starts at or before i; empty ones do too
    while (high - low > 1) {
      const Int middle = (low + high) / 2;
      if (rows[middle * kTableRow] <= i) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const Int offset = rows[low * kTableRow], in_row = rows[low * kTableRow + 2];
    const Int inner = rows[low * kTableRow + 3], first = rows[low * kTableRow + 4];
    return first + (i - offset) / inner % in_row;
  }
};

}  // namespace pylandscape::cuda
