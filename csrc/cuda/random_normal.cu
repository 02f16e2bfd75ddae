// random_normal on the device of its seeds.

#include <torch/csrc/stable/library.h>

#include "cuda/random_normal.cuh"

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

Tensor random_normal_cuda(const Tensor& seeds, Int size) {
  const Launch launch(seeds);
  Tensor out = torch::stable::new_empty(seeds, {seeds.numel(), size}, ScalarType::Float);
  random_normal(launch, seeds.const_data_ptr<Int>(), seeds.numel(), size,
                out.mutable_data_ptr<float>());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  m.impl("random_normal", TORCH_BOX(&random_normal_cuda));
}

}  // namespace
}  // namespace pylandscape::cuda
