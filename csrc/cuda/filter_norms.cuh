// filter_norms: a warp takes a chunk of a run, its 32 lanes the 32 interleaved sums that the CPU
// forms; a second kernel adds the chunks of each filter in order. So the norms, and the random
// directions that are scaled by them, are the same bits on both.

#pragma once

#include "cuda/filters.cuh"
#include "cuda/normal.cuh"

namespace pylandscape::cuda {

inline constexpr Int kChunk = 4096;  // as in cpu/filter_norms.cpp
inline constexpr unsigned kNormThreads = 256;

// Chunks of all runs, numbered through the table: row t has first_chunk[t] before it.
struct Chunks {
  FilterTable table;
  Global<const Int> first_chunk;  // [T + 1]
  Int count;

  // The row of the table that a chunk belongs to.
  __device__ Int row_of(Int chunk) const {
    Int low = 0, high = table.count;
    while (high - low > 1) {
      const Int middle = (low + high) / 2;
      if (first_chunk[middle] <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

template <typename T>
struct StoredVector {
  Global<const T> data;
  __device__ double operator()(Int, Int i) const { return static_cast<double>(data[i]); }
};

struct NormalStreams {
  Global<const Int> seeds;
  __device__ double operator()(Int stream, Int i) const {
    return static_cast<double>(normal(static_cast<std::uint64_t>(seeds[stream]), i));
  }
};

// partial [streams][chunks]: the sums of squares. blockIdx.y is the stream.
template <typename Source>
__global__ void __launch_bounds__(kNormThreads)
    chunk_squares_kernel(Source source, Chunks chunks, Global<double> partial) {
  const Int stream = blockIdx.y;
  const Int lane = threadIdx.x % kWarp;
  const Int warps = grid_threads() / kWarp;
  for (Int chunk = grid_thread() / kWarp; chunk < chunks.count; chunk += warps) {
    const Int t = chunks.row_of(chunk);
    const Global<const Int> row = chunks.table.rows + t * kTableRow;
    const Int inner = row[3];
    const Int per_run = divide_up(inner, kChunk);
    const Int local = chunk - chunks.first_chunk[t];
    const Int begin = local % per_run * kChunk;
    const Int first = row[0] + local / per_run * inner + begin;
    const Int length = least(kChunk, inner - begin);
    const Int whole = length / kWarp * kWarp;
    double sum = 0;
    for (Int i = lane; i < whole; i += kWarp) {
      const double x = source(stream, first + i);
      sum = sum + x * x;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      for (Int i = whole; i < length; ++i) {
        const double x = source(stream, first + i);
        sum = sum + x * x;
      }
      partial[stream * chunks.count + chunk] = sum;
    }
  }
}

// out [streams][filters]: the roots of the sums over a filter's chunks, in order.
__global__ void __launch_bounds__(kNormThreads)
    add_chunks_kernel(Chunks chunks, Global<const double> partial, Int filters,
                      Global<double> out) {
  const Int stream = blockIdx.y;
  for (Int filter = grid_thread(); filter < filters; filter += grid_threads()) {
    Int t = 0;  // the last row that starts at or before the filter and has filters
    for (Int high = chunks.table.count; high - t > 1;) {
      const Int middle = (t + high) / 2;
      if (chunks.table.rows[middle * kTableRow + 4] <= filter) {
        t = middle;
      } else {
        high = middle;
      }
    }
    const Global<const Int> row = chunks.table.rows + t * kTableRow;
    const Int outer = row[1], rows = row[2], per_run = divide_up(row[3], kChunk);
    const Global<const double> mine = partial + (stream * chunks.count + chunks.first_chunk[t]);
    double sum = 0;
    for (Int o = 0; o < outer; ++o) {
      const Int run = o * rows + (filter - row[4]);
      for (Int c = 0; c < per_run; ++c) sum = sum + mine[run * per_run + c];
    }
    out[stream * filters + filter] = sqrt(sum);
  }
}

// out [streams, F] float64; `partial` is room for streams * chunks.count numbers.
template <typename Source, typename Launch>
void filter_norms(const Launch& launch, Source source, Int streams, Chunks chunks, Int filters,
                  Global<double> partial, Global<double> out) {
  if (streams == 0 || filters == 0) return;
  const auto stream_count = static_cast<unsigned>(streams);
  if (chunks.count > 0) {
    launch(PYLANDSCAPE_KERNEL(chunk_squares_kernel<Source>),
           dim3(blocks_for(chunks.count * kWarp, kNormThreads), stream_count), kNormThreads, source,
           chunks, partial);
  }
  launch(PYLANDSCAPE_KERNEL(add_chunks_kernel),
         dim3(blocks_for(filters, kNormThreads), stream_count), kNormThreads, chunks, partial,
         filters, out);
}

}  // namespace pylandscape::cuda
