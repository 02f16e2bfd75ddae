// The schemas of all operators, and nothing else. Kernels register themselves in cpu/<operator>.cpp.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pylandscape, m) { (void)m; }
