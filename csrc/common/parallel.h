// Work on torch's own threads, so that torch.set_num_threads rules. Ranges are cut into fixed
// blocks first and the blocks are shared out: no result may depend on which thread does a block.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace pylandscape {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Calls work(first_block, last_block) for a partition of [0, blocks) into one range per thread.
template <typename Work>
void parallel_blocks(std::int64_t blocks, const Work& work) {
  torch::stable::parallel_for(0, blocks, 1, work);
}

}  // namespace pylandscape
