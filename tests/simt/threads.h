// A block's threads as fibers: each runs until it waits for others or ends, and a scheduler lets
// them go on when all that a barrier or a warp operation waits for are there. What a GPU leaves
// undefined is an error here that names kernel, block and thread.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

using Where = std::source_location;

inline constexpr unsigned kWarp = 32;
inline constexpr std::size_t kStack = 128 << 10;
inline constexpr std::uint64_t kCanary = 0x5ca1ab1e0ddba11;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class State { ready, at_barrier, at_warp_operation, done };

struct Thread {
  dim3 index;
  unsigned number = 0, lane = 0, warp = 0;
  State state = State::ready;
  unsigned mask = 0;  // of the warp operation
  Where where;        // of what it waits for
  bool started = false;
  ucontext_t context;
  jmp_buf jump;
  std::unique_ptr<std::uint64_t[]> stack{new std::uint64_t[kStack / 8]};
};

struct Warp {
  std::array<std::uint64_t, kWarp> offered{}, exchanged{};
  std::uint64_t epoch = 0;  // changes when lanes have waited for each other
};

// The block that runs. Epochs are ticks of one clock that never goes back, so that what an earlier
// block left in shared memory is told apart.
struct Block {
  std::string kernel;
  dim3 index, size, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::function<void()> body;
  Thread* current = nullptr;
  std::exception_ptr failure;
  jmp_buf scheduler;
  std::uint64_t clock = 0, start = 0, epoch = 0;
};

inline Block& block() {
  static Block running;
  return running;
}
inline Thread& thread() { return *block().current; }

inline std::string show(dim3 at) {
  std::ostringstream text;
  text << '(' << at.x << ", " << at.y << ", " << at.z << ')';
  return text.str();
}

// What a GPU leaves undefined or would do wrong, in the name of the thread that does it.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << block().kernel << ", block " << show(block().index);
  if (block().current) message << ", thread " << show(thread().index);
  ((message << ": ") << ... << parts);
  throw Error(message.str());
}

inline void wait(State state, unsigned mask, const Where& where) {
  Thread& self = thread();
  self.state = state;
  self.mask = mask;
  self.where = where;
  if (_setjmp(self.jump) == 0) _longjmp(block().scheduler, 1);
}

inline void run_fiber() {
  try {
    block().body();
  } catch (...) {
    block().failure = std::current_exception();
  }
  thread().state = State::done;
  _longjmp(block().scheduler, 1);
}

// Until the thread waits or ends. Contexts are switched by longjmp, which asks no system call.
inline void resume(Thread& next) {
  Block& b = block();
  b.current = &next;
  if (_setjmp(b.scheduler) == 0) {
    if (next.started) _longjmp(next.jump, 1);
    next.started = true;
    setcontext(&next.context);
  }
  b.current = nullptr;
  if (b.failure) std::rethrow_exception(b.failure);
}

inline std::string waiting_for(const Thread& thread) {
  std::ostringstream text;
  text << "thread " << show(thread.index);
  if (thread.state == State::done) {
    text << " has ended";
  } else {
    text << " waits at a " << (thread.state == State::at_barrier ? "barrier" : "warp operation")
         << " in line " << thread.where.line();
  }
  return text.str();
}

[[noreturn]] inline void fail_divergent(const Thread& one, const Thread& other) {
  fail("divergent: ", waiting_for(one), " where ", waiting_for(other));
}

inline bool same_place(const Thread& a, const Thread& b) {
  return a.where.line() == b.where.line() &&
         std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

// Lets the lanes go on whose warp operation is complete.
inline bool release_warp(unsigned number) {
  Block& b = block();
  Thread* lanes = &b.threads[number * kWarp];
  const unsigned count = std::min<std::size_t>(kWarp, b.threads.size() - number * kWarp);
  const unsigned there = count == kWarp ? ~0u : (1u << count) - 1;
  for (unsigned first = 0; first < count; ++first) {
    const Thread& one = lanes[first];
    if (one.state != State::at_warp_operation) continue;
    if (one.mask & ~there) fail("a mask names lanes that the block does not have");
    bool complete = true;
    for (unsigned lane = 0; lane < count; ++lane) {
      if (!(one.mask >> lane & 1)) continue;
      const Thread& other = lanes[lane];
      if (other.state == State::done) fail_divergent(one, other);
      if (other.state != State::at_warp_operation) {
        complete = false;
      } else if (other.mask != one.mask || !same_place(one, other)) {
        fail_divergent(one, other);
      }
    }
    if (!complete) continue;
    Warp& warp = b.warps[number];
    for (unsigned lane = 0; lane < count; ++lane) {
      if (!(one.mask >> lane & 1)) continue;
      warp.exchanged[lane] = warp.offered[lane];
      lanes[lane].state = State::ready;
    }
    if (one.mask == there) warp.epoch = ++b.clock;
    return true;
  }
  return false;
}

inline bool release_barrier() {
  Block& b = block();
  const Thread* one = nullptr;
  for (const Thread& t : b.threads) {
    if (t.state == State::at_barrier && !one) one = &t;
  }
  if (!one) return false;
  for (const Thread& t : b.threads) {
    if (t.state != State::at_barrier || !same_place(t, *one)) fail_divergent(*one, t);
  }
  for (Thread& t : b.threads) t.state = State::ready;
  b.epoch = ++b.clock;
  return true;
}

inline void run_block() {
  Block& b = block();
  b.failure = nullptr;
  b.start = b.epoch = ++b.clock;
  for (Warp& warp : b.warps) warp.epoch = b.start;
  for (Thread& t : b.threads) {
    t.state = State::ready;
    t.started = false;
    t.stack[0] = kCanary;
    getcontext(&t.context);
    t.context.uc_stack = {t.stack.get(), 0, kStack};
    t.context.uc_link = nullptr;
    makecontext(&t.context, run_fiber, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (Thread& t : b.threads) {
      if (t.state == State::ready) resume(t);
      running |= t.state != State::done;
      if (t.stack[0] != kCanary) fail("a fiber's stack of ", kStack, " bytes overflowed");
    }
    bool released = false;
    for (unsigned w = 0; w < b.warps.size(); ++w) {
      while (release_warp(w)) released = true;
    }
    if (running && !released && !release_barrier()) fail("no thread can go on");
  }
}

// Runs a kernel's blocks one after the other, the last first where `reversed`: blocks that need an
// order differ then.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 size, bool reversed,
            Arguments... arguments) {
  Block& b = block();
  const unsigned count = size.x * size.y * size.z;
  b.kernel = name;
  b.current = nullptr;
  b.size = size;
  b.grid = grid;
  b.index = dim3(0, 0, 0);
  if (count == 0 || count > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535) {
    fail("cannot be launched as a grid of ", show(grid), " blocks of ", count, " threads");
  }
  if (b.threads.size() != count) b.threads = std::vector<Thread>(count);
  b.warps.resize((count + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = b.threads[i];
    t.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    t.number = i;
    t.lane = i % kWarp;
    t.warp = i / kWarp;
  }
  b.body = [=] { kernel(static_cast<Parameters>(arguments)...); };
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t at = reversed ? blocks - 1 - i : i;
    b.index = dim3(at % grid.x, at / grid.x % grid.y, at / (std::uint64_t{grid.x} * grid.y));
    run_block();
  }
}

}  // namespace simt
