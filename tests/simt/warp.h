// Barriers, warp operations and atomics by CUDA's names.

#pragma once

#include "memory.h"

namespace simt {

// Offers a value to the lanes of `mask` and waits for them; `of(lane)` is what a lane offered.
template <typename T>
class Exchange {
 public:
  Exchange(unsigned mask, T value, const Where& where) : mask_(mask) {
    static_assert(sizeof(T) <= 8);
    const Thread& self = thread();
    if (!(mask >> self.lane & 1)) fail("takes part in a warp operation whose mask leaves it out");
    std::memcpy(&warp().offered[self.lane], &value, sizeof value);
    wait(State::at_warp_operation, mask, where);
  }
  bool has(unsigned lane) const { return mask_ >> lane & 1; }
  T of(unsigned lane) const {
    if (!has(lane)) fail("reads lane ", lane, ", which takes no part in the warp operation");
    T value;
    std::memcpy(&value, &warp().exchanged[lane], sizeof value);
    return value;
  }

 private:
  static Warp& warp() { return block().warps[thread().warp]; }
  unsigned mask_;
};

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::current()) {
  simt::wait(simt::State::at_barrier, 0, where);
}
inline void __syncwarp(unsigned mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::Exchange<int>(mask, 0, where);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, simt::Where where = simt::Where::current()) {
  return simt::Exchange<T>(mask, value, where).of(source % simt::kWarp);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, simt::Where where = simt::Where::current()) {
  return simt::Exchange<T>(mask, value, where).of(simt::thread().lane ^ bits);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by,
                   simt::Where where = simt::Where::current()) {
  const unsigned source = simt::thread().lane + by;
  return simt::Exchange<T>(mask, value, where).of(source < simt::kWarp ? source : source - by);
}
inline unsigned __ballot_sync(unsigned mask, bool vote,
                              simt::Where where = simt::Where::current()) {
  const simt::Exchange<bool> votes(mask, vote, where);
  unsigned result = 0;
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    if (votes.has(lane) && votes.of(lane)) result |= 1u << lane;
  }
  return result;
}
inline bool __any_sync(unsigned mask, bool vote, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, vote, where) != 0;
}
inline bool __all_sync(unsigned mask, bool vote, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, vote, where) == mask;
}

// The fibers take turns only where they wait, so an addition is never torn.
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <typename T>
T atomicAdd(simt::Shared<T>* at, T value) {
  return at->add_atomically(value);
}
