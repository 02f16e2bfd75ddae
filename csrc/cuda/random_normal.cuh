// random_normal: a thread makes the four numbers of one Philox block.

#pragma once

#include "cuda/normal.cuh"

namespace pylandscape::cuda {

__global__ void __launch_bounds__(256)
    random_normal_kernel(Global<const Int> seeds, Int streams, Int size, Global<float> out) {
  const Int counters = divide_up(size, 4);
  for (Int work = grid_thread(); work < streams * counters; work += grid_threads()) {
    const Int stream = work / counters, counter = work % counters;
    const Normals four =
        normals(static_cast<std::uint64_t>(seeds[stream]), static_cast<std::uint64_t>(counter));
    const Int left = size - 4 * counter;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) out[stream * size + 4 * counter + i] = four.z[i];
    }
  }
}

// out [D, P] float32 from seeds [D].
template <typename Launch>
void random_normal(const Launch& launch, Global<const Int> seeds, Int streams, Int size,
                   Global<float> out) {
  if (streams == 0 || size == 0) return;
  launch(PYLANDSCAPE_KERNEL(random_normal_kernel), blocks_for(streams * divide_up(size, 4), 256),
         256, seeds, streams, size, out);
}

}  // namespace pylandscape::cuda
