// evaluate_points: sums of losses over samples at many points center + sum_j c_j d_j.
//
// The planner has lowered the model to a list of steps over activations that stay in the cache: a
// block of samples goes through all layers before the next block starts. A point's weights are
// formed in a thread's own memory, in the order the kernels read them; there are never K parameter
// vectors. Usually a thread takes a range of the blocks of all points; where the model starts with
// a Linear it takes a block and runs all points, because the first layer's product with the centre
// and with each direction then serves every point.
//
// Every (point, block) has its own sums and they are added in order of the blocks, so the result
// does not depend on the number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/plan.h"
#include "cpu/layers/context.h"
#include "cpu/layers/reading.h"

#define PYLANDSCAPE_KERNELS "cpu/evaluate_points.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::stable::Tensor;

constexpr Int kLossSums = 7;

// Shares [0, size) among threads. A thread takes half of its part of what is left: long ranges at
// first, because a point's weights are formed where its blocks are run, and single ones at last, so
// that the threads end together.
class Shares {
 public:
  Shares(Int size, Int threads) : size_(size), threads_(threads) {}

  bool take(Int& first, Int& last) {
    first = next_.load();
    do {
      if (first >= size_) return false;
      last = first + std::max<Int>(1, (size_ - first) / (2 * threads_));
    } while (!next_.compare_exchange_weak(first, last));
    return true;
  }

 private:
  std::atomic<Int> next_{0};
  const Int size_, threads_;
};

// Adds to sums [K, 7] those of samples [first, last): a, a^2, a b, b, b^2, correct, counted.
void evaluate_points_cpu(const Tensor& sums, const Tensor& packed, const Tensor& coordinates,
                         const Tensor& inputs, const Tensor& targets, const Tensor& plan_numbers,
                         const Tensor& constants, const Tensor& indices, Int first, Int last) {
  std::vector<const Step*> steps;
  const PlanView plan = read_plan(plan_numbers.const_data_ptr<Int>(), plan_numbers.numel(), steps);
  const Int directions = packed.size(0) - 1;
  require(packed.size(1) == plan.head->packed && coordinates.size(1) == directions,
          "evaluate_points: packed must have shape [", 1 + coordinates.size(1), ", ",
          plan.head->packed, "], got [", packed.size(0), ", ", packed.size(1), "]");
  const Int points = coordinates.size(0);
  const Int samples = last - first;
  if (points == 0 || samples <= 0) return;

  Context context = make_context(plan, inputs, targets, constants, indices);
  context.first_sample = first;

  const bool by_block = plan.head->linear_first != 0;
  const Int blocks = divide_up(samples, plan.head->block);
  const Int threads = torch::stable::get_num_threads();
  Shares shares(by_block ? blocks : points * blocks, threads);
  std::vector<BlockSums> partial(points * blocks);
  const auto form = PYLANDSCAPE_DISPATCH(form_weights);
  const auto point_kernel = PYLANDSCAPE_DISPATCH(evaluate_point);
  const auto block_kernel = PYLANDSCAPE_DISPATCH(evaluate_block);
  const float* centers = packed.const_data_ptr<float>();
  const float* at = coordinates.const_data_ptr<float>();
  parallel_blocks(threads, [&](Int, Int) {
    Int begin = 0, end = 0;
    if (!shares.take(begin, end)) return;
    const Floats weights = zeros(plan.head->packed + plan.head->folded);
    const Floats arena = zeros(plan.head->arena);
    Floats products;
    if (by_block) {
      const auto& linear = *static_cast<const Linear*>(plan.steps[1]);
      products = zeros((1 + directions) * plan.head->block * plan.values[linear.out].sample_pitch);
    }
    Context mine = context;
    mine.arena = arena.get();
    mine.weights = weights.get();
    Int formed = kNone;  // the point whose weights this thread holds
    do {
      if (by_block) {
        for (Int block = begin; block < end; ++block) {
          block_kernel(plan, mine, centers, directions, at, points, weights.get(), products.get(),
                       samples, block, blocks, partial.data());
        }
        begin = end;
      }
      while (begin < end) {
        const Int point = begin / blocks, before = point * blocks;
        const Int stop = std::min(end, before + blocks);
        if (formed != point) {
          form(plan, centers, directions, at + point * directions, mine.constants, weights.get());
          formed = point;
        }
        point_kernel(plan, mine, samples, begin - before, stop - before, partial.data() + before);
        begin = stop;
      }
    } while (shares.take(begin, end));
  });
  double* out = sums.mutable_data_ptr<double>();
  for (Int k = 0; k < points; ++k, out += kLossSums) {
    for (Int block = 0; block < blocks; ++block) {
      add_sums(partial[k * blocks + block], out);
    }
  }
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("evaluate_points", TORCH_BOX(&evaluate_points_cpu));
}

}  // namespace
}  // namespace pylandscape
