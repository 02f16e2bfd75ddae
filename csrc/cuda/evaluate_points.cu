// evaluate_points.device. The plan and the origins of the tensors lie on the CPU, which reads them;
// everything else on the device.

#include <torch/csrc/stable/library.h>

#include "cuda/evaluate_points.cuh"

#include "cuda/launch.h"
#include "cuda/read_program.h"

namespace pylandscape::cuda {
namespace {

void evaluate_points_cuda(const Tensor& sums, const Tensor& workspace, const Tensor& partial,
                          const Tensor& packed, const Tensor& coordinates, const Tensor& inputs,
                          const Tensor& targets, const Tensor& plan, const Tensor& constants,
                          const Tensor& indices, const Tensor& seeds, const Tensor& scales,
                          const Tensor& origins, Int first, Int last, Int points_at_once,
                          Int samples_at_once, Int math) {
  const Launch launch(sums);
  const ProgramNumbers program = read_program(plan.const_data_ptr<Int>(), plan.numel());
  const bool generated = seeds.numel() > 0;
  const bool classes = targets.scalar_type() == ScalarType::Long;
  evaluate_points(
      launch, Evaluation{.program = {program.head, program.values, program.steps.data()},
                         .packed = packed.const_data_ptr<float>(),
                         .coordinates = coordinates.const_data_ptr<float>(),
                         .seeds = generated ? seeds.const_data_ptr<Int>() : nullptr,
                         .scales = scales.const_data_ptr<float>(),
                         .filters = scales.size(1),
                         .origins = reinterpret_cast<const Origin*>(origins.const_data_ptr<Int>()),
                         .origin_count = origins.size(0),
                         .inputs = inputs.const_data_ptr<float>(),
                         .constants = constants.const_data_ptr<float>(),
                         .classes = classes ? targets.const_data_ptr<Int>() : nullptr,
                         .targets = classes ? nullptr : targets.const_data_ptr<float>(),
                         .indices = indices.const_data_ptr<std::int32_t>(),
                         .workspace = workspace.mutable_data_ptr<float>(),
                         .partial = partial.mutable_data_ptr<double>(),
                         .sums = sums.mutable_data_ptr<double>(),
                         .directions = coordinates.size(1),
                         .points = coordinates.size(0),
                         .first = first,
                         .last = last,
                         .points_at_once = points_at_once,
                         .samples_at_once = samples_at_once,
                         .math = static_cast<Math>(math)});
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  m.impl("evaluate_points.device", TORCH_BOX(&evaluate_points_cuda));
}

}  // namespace
}  // namespace pylandscape::cuda
