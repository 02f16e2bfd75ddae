// evaluate_points of csrc/cuda, for arrays on the host.

#include "cuda/evaluate_points.cuh"
#include "bindings.h"
#include "cuda/read_program.h"

namespace {

using namespace pylandscape::cuda;

template <typename T>
Array<T> as(const py::array& array) {
  return py::cast<Array<T>>(array);
}

}  // namespace

void bind_evaluate_points(py::module_& m) {
  m.def(
      "evaluate_points",
      [](const Array<double>& sums, const Array<float>& workspace, const Array<double>& partial,
         const Array<float>& packed, const Array<float>& coordinates, const Array<float>& inputs,
         const py::array& targets, const Array<Int>& plan, const Array<float>& constants,
         const Array<std::int32_t>& indices, const Array<Int>& seeds, const Array<float>& scales,
         const Array<Int>& origins, Int first, Int last, Int points_at_once, Int samples_at_once,
         Int math, bool reversed) {
        const ProgramNumbers program = read_program(plan.data(), plan.size());
        const bool classes = py::isinstance<Array<Int>>(targets);
        evaluate_points(
            Launch{reversed},
            Evaluation{
                .program = {program.head, program.values, program.steps.data()},
                .packed = global(packed, "packed"),
                .coordinates = global(coordinates, "coordinates"),
                .seeds = seeds.size() > 0 ? global(seeds, "seeds") : simt::Global<Int>{},
                .scales = global(scales, "scales"),
                .filters = scales.shape(1),
                .origins = reinterpret_cast<const Origin*>(origins.data()),
                .origin_count = origins.shape(0),
                .inputs = global(inputs, "inputs"),
                .constants = global(constants, "constants"),
                .classes = classes ? global(as<Int>(targets), "classes") : simt::Global<Int>{},
                .targets = classes ? simt::Global<float>{} : global(as<float>(targets), "targets"),
                .indices = global(indices, "indices"),
                .workspace = global(workspace, "workspace"),
                .partial = global(partial, "partial"),
                .sums = global(sums, "sums"),
                .directions = coordinates.shape(1),
                .points = coordinates.shape(0),
                .first = first,
                .last = last,
                .points_at_once = points_at_once,
                .samples_at_once = samples_at_once,
                .math = static_cast<Math>(math)});
      });
}
