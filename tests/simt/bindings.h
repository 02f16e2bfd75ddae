// The kernels' launches for Python: numpy arrays, which share memory with tensors, as pointers that
// know their bounds.

#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <set>
#include <string>

#include "cuda/device.cuh"

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
simt::Global<T> global(const Array<T>& array, const char* name) {
  return {const_cast<T*>(array.data()), array.size(), name};
}

// The kernels that were run, by name.
inline std::set<std::string>& launched() {
  static std::set<std::string> names;
  return names;
}

// The counterpart of csrc/cuda/launch.h.
struct Launch {
  bool reversed;

  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  Arguments... arguments) const {
    launched().insert(name);
    simt::launch(name, kernel, grid, block, reversed, arguments...);
  }
};
