// Convolutions and linear layers as one matrix product per point: rows [samples * rows of a sample,
// depth] times weights [outputs, depth]. A block computes a tile of kTileRows x kTileOutputs
// results. Both factors' tiles are formed while they are loaded: the left one by reading the image
// where a window lies (implicit GEMM), the right one as w0 + sum_j c_j d_j with directions stored
// or generated. So neither windows nor perturbed weights touch memory. The next tile's numbers are
// on their way to registers while the present one is multiplied from shared memory.
//
// fp32 runs on CUDA cores and sums in the order of the depth; tf32 and bf16 round the factors and
// run on tensor cores, with sums in float32.

#pragma once

#include "cuda/epilogue.cuh"

namespace pylandscape::cuda {

namespace wmma = nvcuda::wmma;

enum class Math : Int { fp32, tf32, bf16 };

inline constexpr int kTileRows = 128;
inline constexpr int kTileDepth = 16;
inline constexpr int kProductThreads = 256;

struct ProductInputs {
  Product layer;
  Rows<const float> in;
  Global<const std::int32_t> indices;
  Int samples;
};

template <typename Directions>
struct ProductWork : ProductInputs {
  Parameters<Directions> parameters;
  Rows<float> out;
  Finish finish;
};

// What a factor is rounded to, and how a warp multiplies it.
template <Math kMath>
struct Factor {
  using Type = float;
  using Fragment = void;
  static constexpr int kPad = 4;
  __device__ static float of(float x) { return x; }
};
template <>
struct Factor<Math::tf32> {
  using Type = float;
  using Fragment = wmma::precision::tf32;
  static constexpr int kDepth = 8, kPad = 4;
  __device__ static float of(float x) { return wmma::__float_to_tf32(x); }
};
template <>
struct Factor<Math::bf16> {
  using Type = __nv_bfloat16;
  using Fragment = __nv_bfloat16;
  static constexpr int kDepth = 16, kPad = 8;
  __device__ static __nv_bfloat16 of(float x) { return __float2bfloat16(x); }
};

// A row of a product as a sample and a row of it, by a division in 32 bits: a launch has fewer
// rows.
struct SampleRow {
  unsigned sample, row;

  __device__ SampleRow(const Product& layer, Int all)
      : sample(static_cast<unsigned>(all) / static_cast<unsigned>(layer.rows)),
        row(static_cast<unsigned>(all) % static_cast<unsigned>(layer.rows)) {}
};

// The image of one sample and where a row's window lies in it.
struct Window {
  Global<const float> image;
  int y, x;
  bool exists;

  Window() = default;  // of a linear layer, which has none
  // Rows are output pixels in order; before a fused 2x2 pooling, the four pixels of each window
  // follow each other, so that one thread holds them.
  __device__ Window(const ProductInputs& work, Int point, Int group, Int row) {
    const Product& layer = work.layer;
    exists = row < work.samples * layer.rows;
    const auto [sample, in_sample] = SampleRow(layer, row);
    const int local = static_cast<int>(in_sample);
    const int out_w = static_cast<int>(layer.out_w);
    int oy = local / out_w, ox = local % out_w;
    if (layer.pool != FusedPool::none) {
      const int pooled = local / 4, pooled_w = out_w / 2;
      oy = pooled / pooled_w * 2 + local % 4 / 2;
      ox = pooled % pooled_w * 2 + local % 2;
    }
    y = oy * static_cast<int>(layer.stride_h) - static_cast<int>(layer.pad_h);
    x = ox * static_cast<int>(layer.stride_w) - static_cast<int>(layer.pad_w);
    image =
        work.in.at(point, sample) +
        (group * (layer.in_channels / layer.groups) * layer.in_h * layer.in_w + y * layer.in_w + x);
  }
  __device__ float operator()(const ProductInputs& work, int k) const {
    if (!exists || k >= work.layer.depth) return 0.0f;
    const Global<const std::int32_t> tap = work.indices + (work.layer.taps + 3 * Int{k});
    const int at_y = y + tap[1], at_x = x + tap[2];
    const bool inside = at_y >= 0 && at_y < work.layer.in_h && at_x >= 0 && at_x < work.layer.in_w;
    return inside ? image[tap[0]] : 0.0f;
  }
};

// The numbers of the two factors that a thread brings from memory. Neighbouring threads take what
// lies side by side: rows of an image, the depth of vectors and weights.
template <bool kImage, int kTileOutputs>
struct Loader {
  static constexpr int kLeft = kTileRows * kTileDepth / kProductThreads;
  static constexpr int kRight = kTileOutputs * kTileDepth / kProductThreads;
  float left[kLeft], right[kRight];

  __device__ static int left_row(int i) {
    const int t = threadIdx.x;
    return kImage ? t % kTileRows : t / kTileDepth + i * (kProductThreads / kTileDepth);
  }
  __device__ static int left_depth(int i) {
    const int t = threadIdx.x;
    return kImage ? t / kTileRows + i * (kProductThreads / kTileRows) : t % kTileDepth;
  }
  __device__ static int right_output(int i) {
    return static_cast<int>(threadIdx.x) / kTileDepth + i * (kProductThreads / kTileDepth);
  }
  __device__ static int right_depth() { return threadIdx.x % kTileDepth; }

  template <typename Directions>
  __device__ void load(const ProductWork<Directions>& work, const Window& window, Int point,
                       Int group, Int first_row, Int first_output, int first_depth) {
    const Product& layer = work.layer;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const int k = first_depth + left_depth(i);
      if constexpr (kImage) {
        left[i] = window(work, k);
      } else {
        const Int row = first_row + left_row(i);
        const bool exists = row < work.samples * layer.rows && k < layer.depth;
        left[i] = exists ? work.in.at(point, 0)[row * layer.depth + k] : 0.0f;
      }
    }
    if constexpr (!Directions::kGenerated) {
#pragma unroll
      for (int i = 0; i < kRight; ++i) {
        right[i] = weight(work, i, point, group, first_output, first_depth);
      }
    }
  }

  // Number `i` of the right factor.
  template <typename Directions>
  __device__ static float weight(const ProductWork<Directions>& work, int i, Int point, Int group,
                                 Int first_output, int first_depth) {
    const Product& layer = work.layer;
    const Int output = first_output + right_output(i);
    const int k = first_depth + right_depth();
    const bool exists = output < layer.outputs && k < layer.depth;
    const Int at = layer.weights + (group * layer.outputs + output) * layer.depth + k;
    return exists ? work.parameters.at(Role::weights, point, at) : 0.0f;
  }
};

// Results of a thread: kRows rows of kOutputs outputs, both neighbours.
template <int kTileOutputs>
struct Share {
  static constexpr int kAcross = kTileOutputs == 64 ? 16 : 8;  // threads along the outputs
  static constexpr int kOutputs = kTileOutputs / kAcross;
  static constexpr int kRows = kTileRows * kAcross / kProductThreads;
  float sums[kRows][kOutputs];

  __device__ static int first_row() { return threadIdx.x / kAcross * kRows; }
  __device__ static int first_output() { return threadIdx.x % kAcross * kOutputs; }
};

// Bias, batch_norm, residual, activation and pooling of a thread's results, and the stores.
template <bool kImage, int kTileOutputs, typename Directions>
__device__ inline void finish_share(const ProductWork<Directions>& work,
                                    const Share<kTileOutputs>& share, Int point, Int group,
                                    Int first_row, Int first_output) {
  const Product& layer = work.layer;
  constexpr int kOutputs = Share<kTileOutputs>::kOutputs, kRows = Share<kTileOutputs>::kRows;
  const Int row = first_row + Share<kTileOutputs>::first_row();
  const Int output = first_output + Share<kTileOutputs>::first_output();
  const Int pixels = layer.pool == FusedPool::none ? layer.rows : layer.rows / 4;
  Channel channels[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    channels[j] = output + j < layer.outputs ? channel_at(work.finish, work.parameters, point,
                                                          group * layer.outputs + output + j)
                                             : Channel{0, 0};
  }
  float pooled[kOutputs];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (row + i >= work.samples * layer.rows) break;
    const auto [sample, local] = SampleRow(layer, row + i);
    const unsigned pixel = layer.pool == FusedPool::none ? local : local / 4;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      if (output + j >= layer.outputs) continue;
      const Int channel = group * layer.outputs + output + j;
      const Int at = kImage ? channel * pixels + pixel : pixel * layer.outputs + channel;
      float value = finished(work.finish, channels[j], share.sums[i][j], point, sample, at);
      if (layer.pool != FusedPool::none) {
        if (i % 4 > 0) {
          const float before = pooled[j];
          const bool larger = value > before || value != value;  // NaN wins and stays
          value = layer.pool == FusedPool::average ? before + value : larger ? value : before;
        }
        pooled[j] = value;
        if (i % 4 < 3) continue;
        if (layer.pool == FusedPool::average) value *= 0.25f;
      }
      work.out.at(point, sample)[at] = value;
    }
  }
}

// blockIdx: tile of rows; group and tile of outputs; point.
template <bool kImage, int kTileOutputs, Math kMath, typename Directions>
__global__ void __launch_bounds__(kProductThreads, 2) product_kernel(ProductWork<Directions> work) {
  using Type = typename Factor<kMath>::Type;
  using Mine = Share<kTileOutputs>;
  constexpr int kLeftPitch = kTileRows + Factor<kMath>::kPad;
  constexpr int kRightPitch = kTileOutputs + Factor<kMath>::kPad;
  __shared__ __align__(32) Shared<Type> left[kTileDepth * kLeftPitch];
  __shared__ __align__(32) Shared<Type> right[kTileDepth * kRightPitch];
  using Load = Loader<kImage, kTileOutputs>;

  const Int tiles = divide_up(work.layer.outputs, kTileOutputs);
  const Int point = blockIdx.z, group = blockIdx.y / tiles;
  const Int first_output = blockIdx.y % tiles * kTileOutputs;
  const Int first_row = Int{blockIdx.x} * kTileRows;
  Window window;
  if constexpr (kImage) window = Window(work, point, group, first_row + Load::left_row(0));

  // Warps and their fragments: of 64 outputs 4 x 2 warps with 2 x 2 fragments each, of fewer 8 x 1
  // warps with as many fragments as there are sixteens.
  constexpr int kWarpsAcross = kTileOutputs == 64 ? 2 : 1;
  constexpr int kDown = kTileOutputs == 64 ? 2 : 1, kAcross = kTileOutputs / 16 / kWarpsAcross;
  const int warp = threadIdx.x / kWarp;
  const int warp_row = warp / kWarpsAcross * 16 * kDown;
  const int warp_output = warp % kWarpsAcross * 16 * kAcross;

  Mine share;
  [[maybe_unused]] wmma::fragment<wmma::accumulator, 16, 16, kMath == Math::bf16 ? 16 : 8, float>
      fragments[kDown][kAcross];
  if constexpr (kMath == Math::fp32) {
#pragma unroll
    for (int i = 0; i < Mine::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Mine::kOutputs; ++j) share.sums[i][j] = 0.0f;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) wmma::fill_fragment(fragments[i][j], 0.0f);
    }
  }

  Load next;
  next.load(work, window, point, group, first_row, first_output, 0);
  for (int depth = 0; depth < work.layer.depth; depth += kTileDepth) {
#pragma unroll
    for (int i = 0; i < Load::kLeft; ++i) {
      left[Load::left_depth(i) * kLeftPitch + Load::left_row(i)] = Factor<kMath>::of(next.left[i]);
    }
    if constexpr (Directions::kGenerated) {
      // From arithmetic, not from memory: nothing to be loaded ahead. One copy of the generator.
#pragma unroll 1
      for (int i = 0; i < Load::kRight; ++i) {
        right[Load::right_depth() * kRightPitch + Load::right_output(i)] =
            Factor<kMath>::of(Load::weight(work, i, point, group, first_output, depth));
      }
    } else {
#pragma unroll
      for (int i = 0; i < Load::kRight; ++i) {
        right[Load::right_depth() * kRightPitch + Load::right_output(i)] =
            Factor<kMath>::of(next.right[i]);
      }
    }
    __syncthreads();
    if (depth + kTileDepth < work.layer.depth) {
      next.load(work, window, point, group, first_row, first_output, depth + kTileDepth);
    }
    if constexpr (kMath == Math::fp32) {
#pragma unroll 8  // whole, it needs a register more than there are
      for (int k = 0; k < kTileDepth; ++k) {
        float a[Mine::kRows], b[Mine::kOutputs];
#pragma unroll
        for (int i = 0; i < Mine::kRows; ++i) a[i] = left[k * kLeftPitch + Mine::first_row() + i];
#pragma unroll
        for (int j = 0; j < Mine::kOutputs; ++j) {
          b[j] = right[k * kRightPitch + Mine::first_output() + j];
        }
#pragma unroll
        for (int i = 0; i < Mine::kRows; ++i) {
#pragma unroll
          for (int j = 0; j < Mine::kOutputs; ++j) {
            share.sums[i][j] = fmaf(a[i], b[j], share.sums[i][j]);
          }
        }
      }
    } else {
      using Fragment = typename Factor<kMath>::Fragment;
      constexpr int kDepth = Factor<kMath>::kDepth;
#pragma unroll
      for (int k = 0; k < kTileDepth; k += kDepth) {
        wmma::fragment<wmma::matrix_a, 16, 16, kDepth, Fragment, wmma::col_major> a[kDown];
        wmma::fragment<wmma::matrix_b, 16, 16, kDepth, Fragment, wmma::row_major> b[kAcross];
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          wmma::load_matrix_sync(a[i], &left[k * kLeftPitch + warp_row + 16 * i], kLeftPitch);
        }
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          wmma::load_matrix_sync(b[j], &right[k * kRightPitch + warp_output + 16 * j], kRightPitch);
        }
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
#pragma unroll
          for (int j = 0; j < kAcross; ++j) {
            wmma::mma_sync(fragments[i][j], a[i], b[j], fragments[i][j]);
          }
        }
      }
    }
    __syncthreads();
  }

  if constexpr (kMath != Math::fp32) {
    // Through shared memory to the threads that own rows and outputs, [output][row].
    constexpr int kPitch = kTileRows + 4;
    __shared__ __align__(32) Shared<float> results[kTileOutputs * kPitch];
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        wmma::store_matrix_sync(&results[(warp_output + 16 * j) * kPitch + warp_row + 16 * i],
                                fragments[i][j], kPitch, wmma::mem_col_major);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Mine::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Mine::kOutputs; ++j) {
        share.sums[i][j] = results[(Mine::first_output() + j) * kPitch + Mine::first_row() + i];
      }
    }
  }
  finish_share<kImage>(work, share, point, group, first_row, first_output);
}

// Points, or with `separate` parameters the centre and the directions, of `work.samples` samples.
template <typename Directions, typename Launch>
void run_product(const Launch& launch, const ProductWork<Directions>& work, Int points, Math math) {
  const Int outputs = work.layer.outputs;
  const Int tile = outputs <= 16 ? 16 : outputs <= 32 ? 32 : 64;
  const Int tiles = divide_up(outputs, tile);
  const dim3 grid(static_cast<unsigned>(divide_up(work.samples * work.layer.rows, kTileRows)),
                  static_cast<unsigned>(work.layer.groups * tiles), static_cast<unsigned>(points));
  const bool image = work.layer.kind == StepKind::convolution;
  const auto start = [&](auto name, auto kernel) {
    launch(name, kernel, grid, kProductThreads, work);
  };
#define PYLANDSCAPE_PRODUCT(image, math)                                                           \
  {                                                                                                \
    if (tile == 16) return start(PYLANDSCAPE_KERNEL(product_kernel<image, 16, math, Directions>)); \
    if (tile == 32) return start(PYLANDSCAPE_KERNEL(product_kernel<image, 32, math, Directions>)); \
    return start(PYLANDSCAPE_KERNEL(product_kernel<image, 64, math, Directions>));                 \
  }
#define PYLANDSCAPE_PRODUCTS(math)           \
  if (image) PYLANDSCAPE_PRODUCT(true, math) \
  PYLANDSCAPE_PRODUCT(false, math)
  switch (math) {
    case Math::fp32:
      PYLANDSCAPE_PRODUCTS(Math::fp32)
    case Math::tf32:
      PYLANDSCAPE_PRODUCTS(Math::tf32)
    case Math::bf16:
      PYLANDSCAPE_PRODUCTS(Math::bf16)
  }
#undef PYLANDSCAPE_PRODUCTS
#undef PYLANDSCAPE_PRODUCT
}

}  // namespace pylandscape::cuda
