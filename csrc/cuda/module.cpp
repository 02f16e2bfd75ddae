// The Python module pylandscape._C_cuda. Importing it registers the operators for CUDA tensors with
// torch; it loads on a machine without a GPU or its driver.

#include <Python.h>

namespace {

PyObject* build(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s}", "cuda", PYLANDSCAPE_CUDA_VERSION, "architectures",
                       PYLANDSCAPE_CUDA_ARCHITECTURES);
}

PyMethodDef methods[] = {
    {"build", build, METH_NOARGS, "How the binary was built."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
