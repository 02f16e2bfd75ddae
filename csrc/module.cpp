// The Python module pylandscape._C. Importing it runs the static initialisers that register the
// operators with torch; its own functions tell how it was built and choose the instruction set.

#include <Python.h>

#include <exception>

#include "common/isa.h"

#if defined(__clang__)
#define PYLANDSCAPE_COMPILER ""
#else
#define PYLANDSCAPE_COMPILER "GCC "
#endif
#define PYLANDSCAPE_QUOTE_(text) #text
#define PYLANDSCAPE_QUOTE(text) PYLANDSCAPE_QUOTE_(text)

namespace {

using pylandscape::Isa;

PyObject* raise_value_error(const std::exception& error) {
  PyErr_SetString(PyExc_ValueError, error.what());
  return nullptr;
}

PyObject* isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(pylandscape::isa_name(pylandscape::isa()));
  } catch (const std::exception& error) {
    return raise_value_error(error);
  }
}

PyObject* isa_levels(PyObject*, PyObject*) {
  Py_ssize_t count = 0;
  PyObject* names[pylandscape::kIsaLevels];
  for (int i = 0; i < pylandscape::kIsaLevels; ++i) {
    const Isa level = static_cast<Isa>(i);
    if (!pylandscape::isa_supported(level)) continue;
    names[count++] = PyUnicode_FromString(pylandscape::isa_name(level));
  }
  PyObject* levels = PyTuple_New(count);
  for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SetItem(levels, i, names[i]);
  return levels;
}

PyObject* set_isa(PyObject*, PyObject* level) {
  const char* name = PyUnicode_AsUTF8AndSize(level, nullptr);
  if (name == nullptr) return nullptr;
  try {
    pylandscape::set_isa(name);
  } catch (const std::exception& error) {
    return raise_value_error(error);
  }
  Py_RETURN_NONE;
}

PyObject* tiles_supported(PyObject*, PyObject*) {
  return PyBool_FromLong(pylandscape::tiles_supported());
}

PyObject* build(PyObject*, PyObject*) {
#if defined(__x86_64__)
  constexpr char kCompiled[] = "baseline, avx2, avx512";
#else
  constexpr char kCompiled[] = "baseline";
#endif
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "compiler", PYLANDSCAPE_COMPILER __VERSION__,
                       "torch_target", PYLANDSCAPE_QUOTE(TORCH_TARGET_VERSION), "python_target",
                       PYLANDSCAPE_QUOTE(Py_LIMITED_API), "isa_levels", kCompiled);
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction-set level in use."},
    {"isa_levels", isa_levels, METH_NOARGS, "The levels that this machine can run."},
    {"set_isa", set_isa, METH_O, "Use a level from now on."},
    {"tiles_supported", tiles_supported, METH_NOARGS, "Whether bfloat16 matrix tiles may be used."},
    {"build", build, METH_NOARGS, "How the binary was built."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
