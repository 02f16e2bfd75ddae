// A plan as the operators that run one read it, and the memory that they run it on.

#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/plan.h"
#include "cpu/layers/context.h"

namespace pylandscape {

inline int lanes_in_use() { return isa() == Isa::avx512 ? 16 : isa() == Isa::avx2 ? 8 : 4; }

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float, Free>;

// Zeros on a cache line, with a vector's room behind the last. Where there is much, on huge pages:
// it is read all over, and a page of 4 KiB at a time is slow to get and slow to find again.
inline Floats zeros(Int count) {
  constexpr Int kLine = 64, kHugePage = 2 << 20;
  const Int alignment = count * 4 < 2 * kHugePage ? kLine : kHugePage;
  const Int bytes = divide_up(count * 4 + kLine, alignment) * alignment;
  Floats memory(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
  require(memory != nullptr, "out of memory for ", bytes, " bytes");
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
  std::fill_n(memory.get(), bytes / 4, 0.0f);
  return memory;
}

inline PlanView read_plan(const Int* numbers, Int count, std::vector<const Step*>& steps) {
  PlanView plan{};
  const Int* next = numbers;
  const auto take = [&](auto*& records, Int how_many) {
    using Record = std::remove_reference_t<decltype(*records)>;
    records = reinterpret_cast<Record*>(next);
    next += how_many * static_cast<Int>(sizeof(Record) / sizeof(Int));
    require(next <= numbers + count, "plan must be whole, got ", count, " numbers");
  };
  take(plan.head, 1);
  take(plan.values, plan.head->values);
  take(plan.sections, plan.head->sections);
  take(plan.folds, plan.head->folds);
  take(plan.roundings, plan.head->roundings);
  for (Int s = 0; s < plan.head->steps; ++s) {
    const Step* step = nullptr;
    take(step, 1);
    steps.push_back(step);
    next += step->length - 2;
  }
  require(next == numbers + count, "plan must end with its last step");
  plan.steps = steps.data();
  require(plan.head->lanes == lanes_in_use(), "plan must be made for ", lanes_in_use(),
          " lanes, got ", plan.head->lanes, ". The instruction set was changed after planning");
  return plan;
}

// What the steps see of the data and of the constants of a plan.
inline Context make_context(const PlanView& plan, const torch::stable::Tensor& inputs,
                            const torch::stable::Tensor& targets,
                            const torch::stable::Tensor& constants,
                            const torch::stable::Tensor& indices) {
  Context context{};
  context.values = plan.values;
  context.constants = constants.const_data_ptr<float>();
  context.indices = indices.const_data_ptr<std::int32_t>();
  context.inputs = inputs.const_data_ptr<float>();
  context.input_stride = inputs.stride(0);
  if (targets.scalar_type() == torch::headeronly::ScalarType::Long) {
    context.classes = targets.const_data_ptr<Int>();
  } else {
    context.targets = targets.const_data_ptr<float>();
  }
  return context;
}

// The sums of a block in their order, added to `total` [7].
inline void add_sums(const BlockSums& part, double* total) {
  const double terms[] = {part.a, part.aa, part.ab, part.b, part.bb, part.correct, part.counted};
  for (int i = 0; i < 7; ++i) total[i] += terms[i];
}

}  // namespace pylandscape
