// filter_norms and filter_norms.random. The filter table lies on the CPU, where it is checked; the
// seeds lie where the norms are wanted.

#include <torch/csrc/stable/library.h>

#include "cuda/filter_norms.cuh"

#include "cuda/launch.h"

namespace pylandscape::cuda {
namespace {

// The table and the numbers of its chunks beside `like`, and room for a sum per chunk.
class Work {
 public:
  Work(const Tensor& like, const pylandscape::FilterTable& table, Int streams)
      : rows_(table_beside(like, table)), first_chunk_(count_chunks(like, table)) {
    chunks = {rows_.table, first_chunk_.const_data_ptr<Int>(), count_};
    partial_ = torch::stable::new_empty(like, {streams * count_}, ScalarType::Double);
  }
  double* partial() const { return partial_.mutable_data_ptr<double>(); }

  Chunks chunks;

 private:
  Tensor count_chunks(const Tensor& like, const pylandscape::FilterTable& table) {
    const auto rows = static_cast<Int>(table.tensors.size());
    Tensor host = torch::stable::empty({rows + 1}, ScalarType::Long);
    Int* next = host.mutable_data_ptr<Int>();
    for (const FilterTensor& tensor : table.tensors) {
      *next++ = count_;
      count_ += tensor.outer * tensor.rows * divide_up(tensor.inner, kChunk);
    }
    *next = count_;
    return beside(like, host);
  }

  Int count_ = 0;
  DeviceTable rows_;
  Tensor first_chunk_, partial_;
};

template <typename T>
void norms_of(const Tensor& vector, const pylandscape::FilterTable& table, const Tensor& out) {
  const Launch launch(vector);
  const Work work(vector, table, 1);
  filter_norms(launch, StoredVector<T>{vector.const_data_ptr<T>()}, 1, work.chunks, table.filters,
               work.partial(), out.mutable_data_ptr<double>());
}

Tensor filter_norms_cuda(const Tensor& vector, const Tensor& filter_table) {
  const pylandscape::FilterTable table = read_filter_table("filter_norms", filter_table);
  require(table.size == vector.numel(), "filter_norms: filter_table must describe ", vector.numel(),
          " parameters, got ", table.size);
  Tensor out = torch::stable::new_empty(vector, {table.filters}, ScalarType::Double);
  if (vector.scalar_type() == ScalarType::Float) {
    norms_of<float>(vector, table, out);
  } else {
    norms_of<double>(vector, table, out);
  }
  return out;
}

Tensor filter_norms_random_cuda(const Tensor& seeds, const Tensor& filter_table) {
  const pylandscape::FilterTable table = read_filter_table("filter_norms", filter_table);
  const Launch launch(seeds);
  Tensor out = torch::stable::new_empty(seeds, {seeds.numel(), table.filters}, ScalarType::Double);
  const Work work(seeds, table, seeds.numel());
  filter_norms(launch, NormalStreams{seeds.const_data_ptr<Int>()}, seeds.numel(), work.chunks,
               table.filters, work.partial(), out.mutable_data_ptr<double>());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) {
  m.impl("filter_norms", TORCH_BOX(&filter_norms_cuda));
  m.impl("filter_norms.random", TORCH_BOX(&filter_norms_random_cuda));
}

}  // namespace
}  // namespace pylandscape::cuda
