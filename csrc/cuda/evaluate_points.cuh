// evaluate_points: the program's steps, each one launch for many points and many samples. Samples
// are cut into chunks and points into groups so that the activations of a launch fit the workspace;
// both were chosen by the planner. Nothing here allocates or waits.

#pragma once

#include "cuda/layers.cuh"
#include "cuda/loss.cuh"
#include "cuda/product.cuh"

namespace pylandscape::cuda {

struct Program {
  const Head* head;
  const Value* values;
  const Step* const* steps;
};

struct Evaluation {
  Program program;
  Global<const float> packed;       // [1 + D, P], or [1, P] with generated directions
  Global<const float> coordinates;  // [K, D]
  // Of generated directions: [D], [D, filters], and of every tensor on the host, in order of
  // offset.
  Global<const Int> seeds;
  Global<const float> scales;
  Int filters;
  const Origin* origins;
  Int origin_count;
  Global<const float> inputs, constants;
  Global<const Int> classes;
  Global<const float> targets;
  Global<const std::int32_t> indices;
  Global<float> workspace;
  Global<double> partial, sums;  // [points at once][chunks][7], [K, 7]
  Int directions, points, first, last;
  Int points_at_once, samples_at_once;
  Math math;

  const Value& input() const { return program.values[0]; }
};

// One chunk of samples for one group of points.
template <typename Directions, typename Launch>
class Pass {
 public:
  Pass(const Launch& launch, const Evaluation& all, Int first_point, Int points, Int first_sample,
       Int samples)
      : launch_(launch),
        all_(all),
        first_point_(first_point),
        points_(points),
        first_sample_(first_sample),
        samples_(samples) {}

  // The products of the first layer with the centre and each direction, behind the activations.
  void form_products() const {
    const Product& layer = static_cast<const Product&>(*all_.program.steps[0]);
    ProductWork<Directions> work = product(layer);
    work.parameters.separate = true;
    work.finish.record = {kNone, kNone, kNone, kNone, kNone, kNone, Activation::none, 0};
    work.out = {products(), samples_ * size_of(layer.out), size_of(layer.out)};
    run_product(launch_, work, 1 + all_.directions, all_.math);
  }

  void run() const {
    for (Int i = 0; i < all_.program.head->steps; ++i) {
      const Step& step = *all_.program.steps[i];
      if (i == 0 && all_.program.head->linear_first) {
        combine(static_cast<const Product&>(step));
      } else {
        run(step);
      }
    }
  }

 private:
  Int size_of(Int value) const { return all_.program.values[value].size; }

  Rows<const float> read(Int value) const {
    const auto [offset, size] = all_.program.values[value];
    if (offset == kNone) return {all_.inputs + first_sample_ * size, 0, size};
    return {all_.workspace + offset * rows_at_once(), samples_ * size, size};
  }
  Rows<float> write(Int value) const {
    const auto [offset, size] = all_.program.values[value];
    return {all_.workspace + offset * rows_at_once(), samples_ * size, size};
  }
  Int rows_at_once() const { return all_.points_at_once * all_.samples_at_once; }
  Global<float> products() const {
    return all_.workspace + all_.program.head->row * rows_at_once();
  }

  // For a step that reads the tensors at these offsets, or kNone.
  Parameters<Directions> parameters(Int weights, Int bias, Int gamma, Int beta) const {
    const Int size = all_.program.head->packed;
    Directions directions;
    if constexpr (Directions::kGenerated) {
      const Origin origins[] = {origin(weights), origin(bias), origin(gamma), origin(beta)};
      directions = {
          all_.seeds, all_.scales, all_.filters, {origins[0], origins[1], origins[2], origins[3]}};
    } else {
      directions = {all_.packed + size, size};
    }
    return {all_.packed, all_.coordinates + first_point_ * all_.directions, directions,
            all_.directions, false};
  }
  Parameters<Directions> parameters(const Epilogue& record, Int weights = kNone) const {
    return parameters(weights, record.bias, record.gamma, record.beta);
  }
  Origin origin(Int offset) const {
    Origin found{};
    for (Int i = 0; i < all_.origin_count && all_.origins[i].offset <= offset; ++i) {
      found = all_.origins[i];
    }
    return found;
  }
  Finish finish(const Epilogue& record) const {
    const bool adds = record.residual != kNone;
    return {record, all_.constants, adds ? read(record.residual) : Rows<const float>{}};
  }
  Extent extent(Int size) const {
    return {static_cast<unsigned>(points_), static_cast<unsigned>(samples_),
            static_cast<unsigned>(size)};
  }
  ProductWork<Directions> product(const Product& layer) const {
    return {{layer, read(layer.in), all_.indices, samples_},
            parameters(layer.epilogue, layer.weights),
            write(layer.out),
            finish(layer.epilogue)};
  }

  template <typename... Arguments>
  void each(const char* name, void (*kernel)(Extent, Arguments...), Int size,
            std::type_identity_t<Arguments>... arguments) const {
    const Extent all = extent(size);
    launch_(name, kernel, layer_blocks(all.work()), kLayerThreads, all, arguments...);
  }

  void combine(const Product& layer) const {
    each(PYLANDSCAPE_KERNEL(combine_kernel<Directions>), size_of(layer.out), products(),
         parameters(layer.epilogue), layer.outputs, write(layer.out), finish(layer.epilogue));
  }

  void run(const Step& step) const {
    switch (step.kind) {
      case StepKind::convolution:
      case StepKind::linear:
        return run_product(launch_, product(static_cast<const Product&>(step)), points_, all_.math);
      case StepKind::max_pool:
        return pool(PYLANDSCAPE_KERNEL(pool_kernel<true>), static_cast<const Pool&>(step));
      case StepKind::average_pool:
        return pool(PYLANDSCAPE_KERNEL(pool_kernel<false>), static_cast<const Pool&>(step));
      case StepKind::adaptive_pool:
        return pool(PYLANDSCAPE_KERNEL(adaptive_pool_kernel), static_cast<const Pool&>(step));
      case StepKind::pointwise:
        return run(static_cast<const Pointwise&>(step));
      case StepKind::binary:
        return run(static_cast<const Binary&>(step));
      case StepKind::gather:
        return run(static_cast<const Gather&>(step));
      case StepKind::normalize:
        return run(static_cast<const Normalize&>(step));
      case StepKind::loss:
        return run(static_cast<const Loss&>(step));
    }
  }
  void pool(const char* name, void (*kernel)(Extent, Pool, Rows<const float>, Rows<float>),
            const Pool& step) const {
    each(name, kernel, size_of(step.out), step, read(step.in), write(step.out));
  }
  void run(const Pointwise& step) const {
    each(PYLANDSCAPE_KERNEL(pointwise_kernel<Directions>), size_of(step.out), read(step.in),
         parameters(step.epilogue), step.inner, write(step.out), finish(step.epilogue));
  }
  void run(const Binary& step) const {
    each(PYLANDSCAPE_KERNEL(binary_kernel), size_of(step.out), step, read(step.left),
         read(step.right), all_.indices, write(step.out), finish(step.epilogue));
  }
  void run(const Gather& step) const {
    each(PYLANDSCAPE_KERNEL(gather_kernel), step.count, read(step.in), all_.indices + step.pairs,
         write(step.out));
  }
  void run(const Normalize& step) const {
    const Extent groups = extent(step.groups);
    launch_(PYLANDSCAPE_KERNEL(normalize_kernel<Directions>),
            layer_blocks(Int{groups.work()} * kWarp), kLayerThreads, groups, step,
            size_of(step.out) / step.groups, read(step.in),
            parameters(kNone, kNone, step.weight, step.bias), all_.constants, write(step.out));
  }
  void run(const Loss& step) const {
    const Global<const Int> classes =
        all_.classes ? all_.classes + first_sample_ : Global<const Int>{};
    const Global<const float> targets =
        all_.targets ? all_.targets + first_sample_ * step.outputs : Global<const float>{};
    const LossWork work{step, read(step.in), all_.constants, classes, targets, samples_};
    run_loss(launch_, work, points_, all_.partial, all_.sums + first_point_ * kLossSums);
  }

  const Launch& launch_;
  const Evaluation& all_;
  Int first_point_, points_, first_sample_, samples_;
};

template <typename Directions, typename Launch>
void evaluate_along(const Launch& launch, const Evaluation& all) {
  for (Int sample = all.first; sample < all.last; sample += all.samples_at_once) {
    const Int samples = least(all.samples_at_once, all.last - sample);
    for (Int point = 0; point < all.points; point += all.points_at_once) {
      const Int points = least(all.points_at_once, all.points - point);
      const Pass<Directions, Launch> pass(launch, all, point, points, sample, samples);
      if (point == 0 && all.program.head->linear_first) pass.form_products();
      pass.run();
    }
  }
}

// Adds to sums [K, 7] those of samples [first, last).
template <typename Launch>
void evaluate_points(const Launch& launch, const Evaluation& all) {
  if (all.seeds) {
    evaluate_along<Generated>(launch, all);
  } else {
    evaluate_along<Stored>(launch, all);
  }
}

}  // namespace pylandscape::cuda
