// Compiles the file PYLANDSCAPE_KERNELS once per instruction-set level, into the namespaces
// baseline, avx2 and avx512. Included once, last, by cpu/<operator>.cpp, which calls what was
// compiled through PYLANDSCAPE_DISPATCH.
//
// Every header stands before the target regions, and inside them no function of the standard
// library is called: an inline function instantiated there may hold AVX-512 instructions, and the
// linker may keep that copy for the whole binary. The unnamed namespace keeps our own functions
// apart in the same way.

#include <cstdint>

#include "common/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PYLANDSCAPE_VECTOR_BYTES 16
namespace pylandscape {
namespace {
namespace baseline {
#include PYLANDSCAPE_KERNELS
}
}  // namespace
}  // namespace pylandscape
#undef PYLANDSCAPE_VECTOR_BYTES

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define PYLANDSCAPE_VECTOR_BYTES 32
namespace pylandscape {
namespace {
namespace avx2 {
#include PYLANDSCAPE_KERNELS
}
}  // namespace
}  // namespace pylandscape
#undef PYLANDSCAPE_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define PYLANDSCAPE_VECTOR_BYTES 64
namespace pylandscape {
namespace {
namespace avx512 {
#include PYLANDSCAPE_KERNELS
}
}  // namespace
}  // namespace pylandscape
#undef PYLANDSCAPE_VECTOR_BYTES
#pragma GCC pop_options

#endif

namespace pylandscape {
namespace {

// The one of three functions that belongs to the level in use.
template <typename Function>
Function* at_isa(Function* baseline, Function* avx2, Function* avx512) {
  switch (isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace
}  // namespace pylandscape

#if defined(__x86_64__)
#define PYLANDSCAPE_DISPATCH(...) \
  at_isa(&baseline::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)
#else
#define PYLANDSCAPE_DISPATCH(...) \
  at_isa(&baseline::__VA_ARGS__, &baseline::__VA_ARGS__, &baseline::__VA_ARGS__)
#endif
