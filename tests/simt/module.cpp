// The module `simt_kernels`, built by tests/simt_kernels.py.

#include <utility>

#include "bindings.h"

void bind_planted(py::module_& m);
void bind_operators(py::module_& m);
void bind_evaluate_points(py::module_& m);

PYBIND11_MODULE(simt_kernels, m) {
  py::register_exception<simt::Error>(m, "Error", PyExc_RuntimeError);
  m.def("launched", [] { return std::exchange(launched(), {}); });
  bind_planted(m);
  bind_operators(m);
  bind_evaluate_points(m);
}
