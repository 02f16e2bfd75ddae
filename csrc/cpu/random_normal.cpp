// random_normal(seeds [D], size P) -> [D, P] float32: the standard normal numbers that the other
// operators generate on the fly.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "common/parallel.h"

#define PYLANDSCAPE_KERNELS "cpu/random_normal.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kBlock = 16384;  // a multiple of 4, where blocks of the generator start

Tensor random_normal_cpu(const Tensor& seeds, std::int64_t size) {
  const std::int64_t streams = seeds.numel();
  Tensor out = torch::stable::new_empty(seeds, {streams, size}, ScalarType::Float);
  const auto* seed = seeds.const_data_ptr<std::int64_t>();
  auto* data = out.mutable_data_ptr<float>();

  const auto kernel = PYLANDSCAPE_DISPATCH(random_normal);
  const std::int64_t per_stream = divide_up(size, kBlock);
  parallel_blocks(streams * per_stream, [&](std::int64_t first_block, std::int64_t last_block) {
    for (std::int64_t block = first_block; block < last_block; ++block) {
      const std::int64_t stream = block / per_stream;
      const std::int64_t first = block % per_stream * kBlock;
      kernel(static_cast<std::uint64_t>(seed[stream]), first, std::min(kBlock, size - first),
             data + stream * size + first);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("random_normal", TORCH_BOX(&random_normal_cpu));
}

}  // namespace
}  // namespace pylandscape
