// hessian_vector_product: sums over samples of derivatives along directions, by two plans.
//
// The first plan computes what depends on the point alone: activations, and the cotangents that the
// loss sends back. The second one computes, per direction, their tangents and from both the sums of
// products that make up H v (or a Gauss-Newton or Fisher product, or the gradient, which has no
// direction). A block of samples goes through both before the next one starts, so all directions
// share one pass of the first plan; what the second reads of it is kept per block, and where the
// caller gives memory for all blocks, kept for later calls at the same point.
//
// A thread sums a chunk of blocks in float32; the chunks are added in their order in float64, so
// the result does not depend on the number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/plan.h"
#include "cpu/layers/context.h"
#include "cpu/layers/reading.h"

#define PYLANDSCAPE_KERNELS "cpu/hessian_vector_product.inc"
#include "common/for_each_isa.h"

namespace pylandscape {
namespace {

using torch::stable::Tensor;

// Lets threads add their chunks one after another, in the order of the chunks.
class Turns {
 public:
  template <typename Work>
  void take(Int turn, const Work& work) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return next_ == turn; });
    work();
    ++next_;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Int next_ = 0;
};

// Adds to products [max(V, 1), G] the sums over samples [first, last), and to `sums` [7], where the
// plan of the point is run, those of the loss. The folded vectors are formed in the rows of packed
// [1 + V, packed + folded], behind those that they are made of.
void hessian_vector_product_cpu(const Tensor& products, const Tensor& sums, const Tensor& packed,
                                const Tensor& inputs, const Tensor& targets,
                                const Tensor& point_plan, const Tensor& direction_plan,
                                const Tensor& constants, const Tensor& indices, const Tensor& kept,
                                Int kept_size, bool filled, Int chunk, Int first, Int last) {
  std::vector<const Step*> point_steps, direction_steps;
  const PlanView at_point =
      read_plan(point_plan.const_data_ptr<Int>(), point_plan.numel(), point_steps);
  const PlanView along =
      read_plan(direction_plan.const_data_ptr<Int>(), direction_plan.numel(), direction_steps);
  const Int directions = packed.size(0) - 1, samples = last - first;
  const Int rows = products.size(0), columns = products.size(1);
  const Int block_samples = at_point.head->block;
  const Int width = at_point.head->packed + at_point.head->folded;
  require(packed.size(1) == width, "packed must have ", width, " columns, got ", packed.size(1));
  require(rows == std::max<Int>(directions, 1), "products must have a row per direction");
  require(first % (chunk * block_samples) == 0, "a range must start with a chunk, got ", first);
  if (samples <= 0) return;

  float* weights = packed.mutable_data_ptr<float>();
  const auto fold = PYLANDSCAPE_DISPATCH(fold_weights);
  for (Int j = 0; j <= directions; ++j) {
    const float missing = j == 0 ? 1.0f : 0.0f;
    fold(at_point, constants.const_data_ptr<float>(), missing, weights + j * width);
  }

  Context context = make_context(at_point, inputs, targets, constants, indices);
  context.weights = weights;
  const bool is_stored = kept.numel() > 0;
  float* stored = is_stored ? kept.mutable_data_ptr<float>() : nullptr;
  double* out = products.mutable_data_ptr<double>();

  const Int blocks = divide_up(samples, block_samples), chunks = divide_up(blocks, chunk);
  const Int threads = torch::stable::get_num_threads();
  std::vector<BlockSums> partial(blocks);
  const auto run = PYLANDSCAPE_DISPATCH(run_sections);
  const auto take_over = PYLANDSCAPE_DISPATCH(take_over);
  std::atomic<Int> next{0};
  Turns turns;
  parallel_blocks(threads, [&](Int, Int) {
    if (next.load() >= chunks) return;
    const Floats arena = zeros(at_point.head->arena);
    const Floats gradient = zeros(rows * columns);
    const Floats own = zeros(is_stored ? 0 : kept_size);
    Context mine = context;
    mine.arena = arena.get();
    for (Int c; (c = next.fetch_add(1)) < chunks;) {
      for (Int block = c * chunk; block < std::min(blocks, (c + 1) * chunk); ++block) {
        const Int start = first + block * block_samples;
        const Int count = std::min(block_samples, last - start);
        mine.first_sample = start;
        mine.kept = is_stored ? stored + start / block_samples * kept_size : own.get();
        if (!filled) run(at_point, mine, count, 0, partial[block]);
        for (Int j = 0; j < rows; ++j) {
          mine.direction = directions == 0 ? nullptr : weights + (1 + j) * width;
          mine.gradient = gradient.get() + j * columns;
          BlockSums unused{};
          run(along, mine, count, 0, unused);
        }
      }
      turns.take(c, [&] { take_over(out, gradient.get(), rows * columns); });
    }
  });
  for (const BlockSums& part : partial) add_sums(part, sums.mutable_data_ptr<double>());
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CPU, m) {
  m.impl("hessian_vector_product", TORCH_BOX(&hessian_vector_product_cpu));
}

}  // namespace
}  // namespace pylandscape
