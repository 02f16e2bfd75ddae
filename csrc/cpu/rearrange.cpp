// rearrange: elements of one vector, times `scale`, in segments of another one. A segment is a row
// (first place, places, first element): its places take source[element - 1], or zero where that is
// 0. This is how parameters come into the order of the kernels, and derivatives back.

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

using Int = std::int64_t;

constexpr Int kBlock = 16384;

struct Block {
  Int place, element, count;
};

std::vector<Block> blocks_of(const Tensor& segments, Int places, Int elements) {
  std::vector<Block> blocks;
  const auto* segment = segments.const_data_ptr<Int>();
  for (Int s = 0; s < segments.size(0); ++s, segment += 3) {
    const Int place = segment[0], count = segment[1], element = segment[2];
    require(place >= 0 && count >= 0 && place + count <= places && element >= 0 &&
                element + count <= elements,
            "rearrange: segments must lie in ", places, " places and ", elements, " elements, got ",
            place, ", ", count, " and ", element);
    for (Int done = 0; done < count; done += kBlock) {
      blocks.push_back({place + done, element + done, std::min(kBlock, count - done)});
    }
  }
  return blocks;
}

template <typename From>
void rearranged(const Tensor& out, const Tensor& source, const Tensor& elements,
                const std::vector<Block>& blocks, double scale) {
  const From* from = source.const_data_ptr<From>();
  const auto* element = elements.const_data_ptr<std::int32_t>();
  float* to = out.mutable_data_ptr<float>();
  const auto kernel = PYLANDSCAPE_DISPATCH(rearrange_block<From>);
  parallel_blocks(static_cast<Int>(blocks.size()), [&](Int b, Int last) {
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
