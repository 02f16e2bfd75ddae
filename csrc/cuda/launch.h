// How .cu files run kernels: on the device and the current stream of a tensor, with errors that
// name the kernel.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>

#include "common/check.h"
#include "common/filters.h"
#include "cuda/filters.cuh"

namespace pylandscape::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// While it lives, the tensor's device is the current one.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  Arguments... arguments) const {
    kernel<<<grid, block, 0, stream_>>>(static_cast<Parameters>(arguments)...);
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return;
    std::ostringstream message;
    message << "pylandscape: the CUDA kernel " << name
            << " cannot be launched: " << cudaGetErrorString(error);
    throw std::runtime_error(message.str());
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// A copy of a small CPU tensor beside `like`.
inline Tensor beside(const Tensor& like, const Tensor& small) {
  return torch::stable::to(small, small.scalar_type(), torch::headeronly::Layout::Strided,
                           like.device());
}

// A filter table on the device; `storage` keeps it alive.
struct DeviceTable {
  Tensor storage;
  FilterTable table;
};

inline DeviceTable table_beside(const Tensor& like, const pylandscape::FilterTable& table) {
  const auto rows = static_cast<std::int64_t>(table.tensors.size());
  static_assert(sizeof(FilterTensor) == kTableRow * sizeof(Int));
  Tensor host = torch::stable::empty({rows, kTableRow}, ScalarType::Long);
  std::copy(table.tensors.begin(), table.tensors.end(),
            reinterpret_cast<FilterTensor*>(host.mutable_data_ptr<Int>()));
  Tensor device = beside(like, host);
  return {device, {device.const_data_ptr<Int>(), rows}};
}

}  // namespace pylandscape::cuda
