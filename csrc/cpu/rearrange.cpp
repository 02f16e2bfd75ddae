// rearrange: elements of one vector, times `scale`, in segments of another one. A segment is a row
// (first place, places); the places of all of them, one after another, take source[elements - 1],
// or zero where that is 0. This is how parameters come into the order of the kernels and back.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"

#define PYLANDSCAPE_KERNELS "cpu/rearrange.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kBlock = 16384;

struct Block {
  std::int64_t place, element, count;
};

std::vector<Block> blocks_of(const Tensor& segments, std::int64_t places, std::int64_t elements) {
  std::vector<Block> blocks;
  std::int64_t used = 0;
  const auto* segment = segments.const_data_ptr<std::int64_t>();
  for (std::int64_t s = 0; s < segments.size(0); ++s, segment += 2) {
    const std::int64_t first = segment[0], count = segment[1];
    require(first >= 0 && count >= 0 && first + count <= places,
            "rearrange: segments must lie in out of ", places, " places, got ", first, " and ",
            count, " more");
    for (std::int64_t done = 0; done < count; done += kBlock) {
      blocks.push_back({first + done, used + done, std::min(kBlock, count - done)});
    }
    used += count;
  }
  require(used == elements, "rearrange: elements must fill segments of ", used, " places, got ",
          elements);
  return blocks;
}

template <typename From>
void rearranged(const Tensor& out, const Tensor& source, const Tensor& elements,
                const std::vector<Block>& blocks, double scale) {
  const From* from = source.const_data_ptr<From>();
  const auto* element = elements.const_data_ptr<std::int32_t>();
  float* to = out.mutable_data_ptr<float>();
  const auto kernel = PYLANDSCAPE_DISPATCH(rearrange_block<From>);
  parallel_blocks(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t b, std::int64_t last) {
    for (; b < last; ++b) {
      kernel(from, element + blocks[b].element, blocks[b].count, static_cast<From>(scale),
             to + blocks[b].place);
    }
  });
}

void rearrange_cpu(const Tensor& out, const Tensor& source, const Tensor& elements,
                   const Tensor& segments, double scale) {
  const auto blocks = blocks_of(segments, out.numel(), elements.numel());
  if (source.scalar_type() == ScalarType::Float) {
    rearranged<float>(out, source, elements, blocks, scale);
  } else {
    rearranged<double>(out, source, elements, blocks, scale);
  }
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) { m.impl("rearrange", TORCH_BOX(&rearrange_cpu)); }

}  // namespace
}  // namespace pylandscape
