// perturb and perturb.random. Seeds, scales and the filter table of the latter lie on the CPU,
// where they are checked; they are small.

#include <torch/csrc/stable/library.h>

#include "cuda/perturb.cuh"

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

template <typename T>
void stored(const Tensor& points, const Tensor& center, const Tensor& directions,
            const Tensor& coordinates) {
  const Launch launch(points);
  perturb<T>(launch, center.const_data_ptr<T>(), directions.const_data_ptr<T>(), center.numel(),
             directions.size(0), coordinates.const_data_ptr<T>(), coordinates.size(0),
             points.mutable_data_ptr<T>());
}

template <typename T>
void generated(const Tensor& points, const Tensor& center, const Tensor& seeds,
               const Tensor& scales, const pylandscape::FilterTable& table,
               const Tensor& coordinates) {
  const Launch launch(points);
  const DeviceTable rows = table_beside(points, table);
  const Tensor device_seeds = beside(points, seeds), device_scales = beside(points, scales);
  perturb_random<T>(launch, center.const_data_ptr<T>(), device_seeds.const_data_ptr<Int>(),
                    device_scales.const_data_ptr<double>(), table.filters, rows.table,
                    center.numel(), seeds.numel(), coordinates.const_data_ptr<T>(),
                    coordinates.size(0), points.mutable_data_ptr<T>());
}

void perturb_cuda(const Tensor& points, const Tensor& center, const Tensor& directions,
                  const Tensor& coordinates) {
  if (center.scalar_type() == ScalarType::Float) {
    stored<float>(points, center, directions, coordinates);
  } else {
    stored<double>(points, center, directions, coordinates);
  }
}

void perturb_random_cuda(const Tensor& points, const Tensor& center, const Tensor& seeds,
                         const Tensor& scales, const Tensor& filter_table,
                         const Tensor& coordinates) {
  const pylandscape::FilterTable table = read_filter_table("perturb", filter_table);
  require_covers("perturb", table, center.numel(), scales.size(1));
  if (center.scalar_type() == ScalarType::Float) {
    generated<float>(points, center, seeds, scales, table, coordinates);
  } else {
    generated<double>(points, center, seeds, scales, table, coordinates);
  }
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  m.impl("perturb", TORCH_BOX(&perturb_cuda));
  m.impl("perturb.random", TORCH_BOX(&perturb_random_cuda));
}

}  // namespace
}  // namespace pylandscape::cuda
