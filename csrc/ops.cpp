// The schemas of all operators, and nothing else. Kernels register themselves in
// cpu/<operator>.cpp.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pylandscape, m) {
  // P parameters, D directions, K points, F filters.
  m.def("perturb(Tensor(a!) points, Tensor center, Tensor directions, Tensor coordinates) -> ()");
  m.def(
      "perturb.random(Tensor(a!) points, Tensor center, Tensor seeds, Tensor scales, "
      "Tensor filter_table, Tensor coordinates) -> ()");
  m.def("filter_norms(Tensor vector, Tensor filter_table) -> Tensor");
  m.def("filter_norms.random(Tensor seeds, Tensor filter_table) -> Tensor");
  m.def(
      "rearrange(Tensor(a!) out, Tensor source, Tensor elements, Tensor segments, float scale) "
      "-> ()");
  m.def("random_normal(Tensor seeds, int size) -> Tensor");
  m.def(
      "lanczos_step(Tensor(a!) basis, Tensor(b!) product, int step, Tensor(c!) scale, "
      "float tolerance) -> (Tensor coefficients, Tensor beta, Tensor breakdown)");
  m.def(
      "evaluate_points(Tensor(a!) sums, Tensor packed, Tensor coordinates, Tensor inputs, "
      "Tensor targets, Tensor plan, Tensor constants, Tensor indices, int first, int last) -> ()");
  m.def(
      "evaluate_points.device(Tensor(a!) sums, Tensor(b!) workspace, Tensor(c!) partial, "
      "Tensor packed, Tensor coordinates, Tensor inputs, Tensor targets, Tensor plan, "
      "Tensor constants, Tensor indices, Tensor seeds, Tensor scales, Tensor origins, int first, "
      "int last, int points_at_once, int samples_at_once, int math) -> ()");
  m.def(
      "hessian_vector_product(Tensor(a!) products, Tensor(b!) sums, Tensor(c!) packed, "
      "Tensor inputs, Tensor targets, Tensor point_plan, Tensor direction_plan, Tensor constants, "
      "Tensor indices, Tensor(d!) kept, int kept_size, bool filled, int chunk, int first, "
      "int last) -> ()");
}
