#include "common/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pylandscape {
namespace {

constexpr Isa kLevels[kIsaLevels] = {Isa::baseline, Isa::avx2, Isa::avx512};

std::atomic<int> chosen{-1};

Isa parse(const char* name, const char* source) {
  std::string supported;
  for (Isa level : kLevels) {
    if (!isa_supported(level)) continue;
    if (std::strcmp(name, isa_name(level)) == 0) return level;
    supported += std::string(supported.empty() ? "" : ", ") + isa_name(level);
  }
  throw std::invalid_argument(std::string(source) + " must be a level that this machine can run (" +
                              supported + "), got \"" + name + "\"");
}

Isa choose() {
  if (const char* name = std::getenv("PYLANDSCAPE_ISA")) return parse(name, "PYLANDSCAPE_ISA");
  Isa best = Isa::baseline;
  for (Isa level : kLevels) {
    if (isa_supported(level)) best = level;
  }
  return best;
}

}  // namespace

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

bool isa_supported(Isa level) {
#if defined(__x86_64__)
  switch (level) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return level == Isa::baseline;
#endif
}

Isa isa() {
  int level = chosen.load(std::memory_order_relaxed);
  if (level < 0) {
    level = static_cast<int>(choose());
    chosen.store(level, std::memory_order_relaxed);
  }
  return static_cast<Isa>(level);
}

bool tiles_supported() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool granted = __builtin_cpu_supports("amx-tile") &&
                              __builtin_cpu_supports("amx-bf16") &&
                              syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted && isa() == Isa::avx512;
#else
  return false;
#endif
}

void set_isa(const char* name) {
  chosen.store(static_cast<int>(parse(name, "set_isa: level")), std::memory_order_relaxed);
}

}  // namespace pylandscape
