// Memory that watches how it is used: pointers into global memory that know their bounds, and cells
// of shared memory that know who touched them since the last barrier.

#pragma once

#include <type_traits>

#include "threads.h"

namespace simt {

// Stands for T* in a kernel's parameters.
template <typename T>
class Global {
 public:
  Global() = default;
  Global(T* data, std::int64_t size, const char* name) : data_(data), size_(size), name_(name) {}

  operator Global<const T>() const
    requires(!std::is_const_v<T>)
  {
    Global<const T> result(data_, size_, name_);
    return result + at_;
  }
  explicit operator bool() const { return data_ != nullptr; }

  T& operator[](std::int64_t i) const {
    const std::int64_t at = at_ + i;
    if (at < 0 || at >= size_) {
      fail("element ", at, " of ", name_, " is out of range, it has ", size_);
    }
    return data_[at];
  }
  T& operator*() const { return (*this)[0]; }
  Global operator+(std::int64_t i) const {
    Global result = *this;
    result.at_ += i;
    return result;
  }
  Global& operator+=(std::int64_t i) { return *this = *this + i; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0, at_ = 0;
  const char* name_ = "a null pointer";
};

// Who touched a cell, and when.
struct Access {
  std::uint64_t epoch = 0, warp_epoch = 0;
  unsigned thread = 0;
  bool several = false;  // more threads of that warp have

  static Access now() {
    const Thread& self = thread_of();
    return {block().epoch, block().warps[self.warp].epoch, self.number};
  }
  unsigned warp() const { return thread / kWarp; }
  // Whether it happened before what the current thread does now.
  bool is_ordered() const {
    const Thread& self = thread_of();
    if (epoch < block().epoch) return true;
    if (thread == self.number && !several) return true;
    return warp() == self.warp && warp_epoch < block().warps[self.warp].epoch;
  }

 private:
  static const Thread& thread_of() { return simt::thread(); }
};

// An element of shared memory. It is not there until it is written; two threads may only touch it
// with a barrier in between (__syncwarp within a warp), unless both read or both are atomic.
template <typename T>
class Shared {
 public:
  constexpr Shared() = default;
  operator T() const {
    read();
    return value_;
  }
  Shared& operator=(T value) {
    write(false);
    value_ = value;
    return *this;
  }
  Shared& operator=(const Shared& other) { return *this = static_cast<T>(other); }
  Shared& operator+=(T value) { return *this = static_cast<T>(*this) + value; }

  T add_atomically(T value) {
    if (writer_.epoch < block().start)
      fail("adds to shared memory that nobody wrote, is a barrier missing?");
    write(true);
    const T before = value_;
    value_ += value;
    return before;
  }

 private:
  void read() const {
    if (writer_.epoch < block().start)
      fail("reads shared memory that nobody wrote, is a barrier missing?");
    if (!writer_.is_ordered()) race("reads", writer_, "wrote");
    for (Access& reader : readers_) {  // of each of two warps, which is enough to find a race
      if (reader.is_ordered()) {
        reader = Access::now();
        return;
      }
      if (reader.warp() == thread().warp) {
        reader.several |= reader.thread != thread().number;
        return;
      }
    }
  }
  void write(bool atomic) {
    if (!(atomic && atomic_) && !writer_.is_ordered()) race("writes", writer_, "wrote");
    for (const Access& reader : readers_) {
      if (!reader.is_ordered()) race("writes", reader, "read");
    }
    writer_ = Access::now();
    atomic_ = atomic;
  }
  [[noreturn]] void race(const char* does, const Access& other, const char* did) const {
    fail("race: ", does, " shared memory that thread ", show(block().threads[other.thread].index),
         " ", did, " with no barrier in between");
  }

  T value_{};
  Access writer_;
  mutable Access readers_[2];
  bool atomic_ = false;
};

}  // namespace simt
