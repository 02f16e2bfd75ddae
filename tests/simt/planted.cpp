// Small kernels, right ones and ones with a planted bug of each kind, for the tests of the layer.

#include "bindings.h"

namespace {

using namespace pylandscape::cuda;
namespace wmma = nvcuda::wmma;

constexpr int kThreads = 64;

// out[i] = the sum over the block, by shuffles and shared memory. With `kBug`, the barrier is
// forgotten.
template <bool kBug>
__global__ void block_sum(Global<const double> x, Int size, Global<double> out) {
  __shared__ Shared<double> parts[kThreads / kWarp];
  const Int i = grid_thread();
  const double mine = warp_sum(i < size ? x[i] : 0.0);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = mine;
  if (!kBug) __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) sum += parts[w];
    out[blockIdx.x] = sum;
  }
}

// Reverses 64 numbers through shared memory, again and again: the second barrier of a round keeps
// its writes apart from the reads before.
template <bool kBug>
__global__ void reverse_rounds(Global<double> x, int rounds) {
  __shared__ Shared<double> tile[kThreads];
  for (int round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
    if (!kBug) __syncthreads();
  }
}

__global__ void copy_past_the_end(Global<const double> x, Global<double> out) {
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void read_unwritten(Global<double> out) {
  __shared__ Shared<double> tile[kThreads];
  if (threadIdx.x < 10) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void divergent_barrier(Global<double> out) {
  if (threadIdx.x < 7) {
    out[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void leave_before_barrier(Global<double> out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_shuffle(Global<double> out) {
  if (threadIdx.x % kWarp == 9) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0, 1);
}

__global__ void shuffle_from_outside(Global<double> out) {
  if (threadIdx.x % kWarp < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0, 16);
}

// Each thread overwrites its own number, which its neighbour may not have read yet.
__global__ void shift_in_place(Global<double> x) {
  __shared__ Shared<double> tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  tile[threadIdx.x] = tile[(threadIdx.x + 1) % kThreads];
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x];
}

// A warp reverses its part: __syncwarp is enough within a warp, and needed.
template <bool kBug>
__global__ void reverse_in_warp(Global<double> x) {
  __shared__ Shared<double> tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  if (!kBug) __syncwarp();
  x[threadIdx.x] = tile[threadIdx.x ^ (kWarp - 1)];
}

// out[0] = the lanes of the first warp with x > 0; out[1], out[2] whether any, all have.
__global__ void votes(Global<const double> x, Global<double> out) {
  const bool vote = x[threadIdx.x] > 0;
  const unsigned lanes = __ballot_sync(kAllLanes, vote);
  const bool any = __any_sync(kAllLanes, vote), all = __all_sync(kAllLanes, vote);
  if (threadIdx.x == 0) {
    out[0] = lanes;
    out[1] = any;
    out[2] = all;
  }
}

// A histogram by atomics; with `kBug`, by plain additions.
template <bool kBug>
__global__ void histogram(Global<const double> x, Int size, Global<double> out) {
  __shared__ Shared<double> counts[4];
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();
  for (Int i = threadIdx.x; i < size; i += kThreads) {
    Shared<double>* const bin = &counts[static_cast<int>(x[i])];
    if (kBug) {
      *bin += 1.0;
    } else {
      atomicAdd(bin, 1.0);
    }
  }
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(&out[threadIdx.x], static_cast<double>(counts[threadIdx.x]));
}

// c [16, 16] = a [16, 8] b [8, 16] by one warp, from shared memory, factors rounded to TF32.
template <bool kBug>
__global__ void matrix_product(Global<const float> a, Global<const float> b, Global<float> c) {
  __shared__ Shared<float> left[16 * 8], right[8 * 16], result[16 * 16];
  for (int i = threadIdx.x; i < 16 * 8; i += kWarp) {
    left[i] = a[i];
    right[i] = b[i];
  }
  if (kBug && threadIdx.x == 5) return;
  __syncthreads();
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> fc;
  wmma::fill_fragment(fc, 0.0f);
  wmma::load_matrix_sync(fa, &left[0], 8);
  wmma::load_matrix_sync(fb, &right[0], 16);
  for (auto& x : fa.x) x = wmma::__float_to_tf32(x);
  for (auto& x : fb.x) x = wmma::__float_to_tf32(x);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(&result[0], fc, 16, wmma::mem_row_major);
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * 16; i += kWarp) c[i] = result[i];
}

// Blocks must not need an order: this one does.
__global__ void running_total(Global<double> x) {
  if (threadIdx.x == 0 && blockIdx.x > 0) x[blockIdx.x] += x[blockIdx.x - 1];
}

void run(const std::string& name, const Array<double>& x, const Array<double>& y, bool reversed) {
  const Launch launch{reversed};
  const Global<double> in = global(x, "x"), out = global(y, "y");
  const Int size = x.size();
  const auto blocks = static_cast<unsigned>(divide_up(size, kThreads));
  const std::map<std::string, std::function<void()>> kernels = {
#define CASE(name, kernel, grid, ...)                                              \
  {                                                                                \
    name, [&] { launch(PYLANDSCAPE_KERNEL(kernel), grid, kThreads, __VA_ARGS__); } \
  }
      CASE("block_sum", block_sum<false>, blocks, in, size, out),
      CASE("block_sum without barrier", block_sum<true>, blocks, in, size, out),
      CASE("reverse", reverse_rounds<false>, 1, in, 3),
      CASE("reverse without second barrier", reverse_rounds<true>, 1, in, 3),
      CASE("shift in place", shift_in_place, 1, in),
      CASE("past the end", copy_past_the_end, 1, in, out),
      CASE("unwritten", read_unwritten, 1, out),
      CASE("divergent barrier", divergent_barrier, 1, out),
      CASE("leave before barrier", leave_before_barrier, 1, out),
      CASE("divergent shuffle", divergent_shuffle, 1, out),
      CASE("shuffle from outside", shuffle_from_outside, 1, out),
      CASE("reverse in warp", reverse_in_warp<false>, 1, in),
      CASE("reverse in warp without barrier", reverse_in_warp<true>, 1, in),
      CASE("votes", votes, 1, in, out),
      CASE("histogram", histogram<false>, 1, in, size, out),
      CASE("histogram without atomics", histogram<true>, 1, in, size, out),
      CASE("running total", running_total, static_cast<unsigned>(size), in),
      CASE("too many blocks", running_total, dim3(1, 70000), in),
#undef CASE
  };
  kernels.at(name)();
}

void product(const Array<float>& a, const Array<float>& b, const Array<float>& c, bool bug) {
  const Launch launch{false};
  const auto start = [&](auto name, auto kernel) {
    launch(name, kernel, 1, kWarp, global(a, "a"), global(b, "b"), global(c, "c"));
  };
  if (bug) {
    start(PYLANDSCAPE_KERNEL(matrix_product<true>));
  } else {
    start(PYLANDSCAPE_KERNEL(matrix_product<false>));
  }
}

}  // namespace

void bind_planted(py::module_& m) {
  m.def("run", &run, py::arg("name"), py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("reversed") = false);
  m.def("product", &product, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("c").noconvert(), py::arg("bug") = false);
}
