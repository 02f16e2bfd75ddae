// lanczos_step; its results stay on the device.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/lanczos_step.cuh"

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> lanczos_step_cuda(const Tensor& basis, const Tensor& product,
                                                     Int step, const Tensor& scale,
                                                     double tolerance) {
  const Launch launch(product);
  const Int rows = step + 1, size = product.numel();
  Tensor coefficients = torch::stable::new_empty(product, {rows}, ScalarType::Double);
  Tensor beta = torch::stable::new_empty(product, {}, ScalarType::Double);
  Tensor breakdown = torch::stable::new_empty(product, {}, ScalarType::Bool);
  Tensor scratch =
      torch::stable::new_empty(product, {lanczos_scratch(rows, size)}, ScalarType::Double);
  const auto run = [&]<typename T>(T*) {
    lanczos_step<T>(launch, basis.mutable_data_ptr<T>(), rows, size, product.mutable_data_ptr<T>(),
                    tolerance, scratch.mutable_data_ptr<double>(), scale.mutable_data_ptr<double>(),
                    coefficients.mutable_data_ptr<double>(), beta.mutable_data_ptr<double>(),
                    breakdown.mutable_data_ptr<bool>());
  };
  if (product.scalar_type() == ScalarType::Float) {
    run(static_cast<float*>(nullptr));
  } else {
    run(static_cast<double*>(nullptr));
  }
  return {coefficients, beta, breakdown};
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  m.impl("lanczos_step", TORCH_BOX(&lanczos_step_cuda));
}

}  // namespace
}  // namespace pylandscape::cuda
