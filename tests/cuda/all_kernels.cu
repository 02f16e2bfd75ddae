// Every kernel of csrc/cuda, without torch: what tests/test_kernel_budget.py compiles for the
// compiler's report of registers, shared memory and spills.

#include "cuda/evaluate_points.cuh"
#include "cuda/filter_norms.cuh"
#include "cuda/lanczos_step.cuh"
#include "cuda/perturb.cuh"
#include "cuda/random_normal.cuh"

namespace {

using namespace pylandscape::cuda;

// Naming a kernel is enough for it to be compiled.
struct Launch {
  template <typename Kernel, typename... Arguments>
  void operator()(const char*, Kernel kernel, dim3, dim3, const Arguments&...) const {
    used = reinterpret_cast<const void*>(kernel);
  }
  static inline const void* volatile used = nullptr;
};

template <typename T>
void use_all_of() {
  const Launch launch;
  perturb<T>(launch, nullptr, nullptr, 1, 1, nullptr, 1, nullptr);
  perturb_random<T>(launch, nullptr, nullptr, nullptr, 1, {}, 1, 1, nullptr, 1, nullptr);
  filter_norms(launch, StoredVector<T>{}, 1, {}, 1, nullptr, nullptr);
  lanczos_step<T>(launch, nullptr, 1, 1, nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr);
}

}  // namespace

void use_all() {
  const Launch launch;
  use_all_of<float>();
  use_all_of<double>();
  random_normal(launch, nullptr, 1, 1, nullptr);
  filter_norms(launch, NormalStreams{}, 1, {}, 1, nullptr, nullptr);
  evaluate_points(launch, Evaluation{});
}
