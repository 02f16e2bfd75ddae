// The operators' kernels, for arrays on the host.

#include "bindings.h"
#include "cuda/filter_norms.cuh"
#include "cuda/lanczos_step.cuh"
#include "cuda/perturb.cuh"
#include "cuda/random_normal.cuh"

namespace {

using namespace pylandscape::cuda;

FilterTable table_of(const Array<Int>& rows) { return {global(rows, "table"), rows.shape(0)}; }

template <typename T>
void bind_for(py::module_& m) {
  m.def("perturb", [](const Array<T>& points, const Array<T>& center, const Array<T>& directions,
                      const Array<T>& coordinates, bool reversed) {
    perturb<T>(Launch{reversed}, global(center, "center"), global(directions, "directions"),
               center.size(), directions.shape(0), global(coordinates, "coordinates"),
               coordinates.shape(0), global(points, "points"));
  });
  m.def("perturb_random", [](const Array<T>& points, const Array<T>& center,
                             const Array<Int>& seeds, const Array<double>& scales,
                             const Array<Int>& table, const Array<T>& coordinates, bool reversed) {
    perturb_random<T>(Launch{reversed}, global(center, "center"), global(seeds, "seeds"),
                      global(scales, "scales"), scales.shape(1), table_of(table), center.size(),
                      seeds.size(), global(coordinates, "coordinates"), coordinates.shape(0),
                      global(points, "points"));
  });
  m.def("filter_norms", [](const Array<double>& out, const Array<T>& vector,
                           const Array<Int>& table, const Array<Int>& first_chunk, bool reversed) {
    const Int count = first_chunk.data()[table.shape(0)];
    Array<double> partial(count);
    const Chunks chunks{table_of(table), global(first_chunk, "first_chunk"), count};
    filter_norms(Launch{reversed}, StoredVector<T>{global(vector, "vector")}, 1, chunks, out.size(),
                 global(partial, "partial"), global(out, "norms"));
  });
  m.def("lanczos_step",
        [](const Array<T>& basis, const Array<T>& product, Int step, const Array<double>& scale,
           double tolerance, const Array<double>& coefficients, const Array<double>& beta,
           const Array<bool>& breakdown, bool reversed) {
          Array<double> scratch(lanczos_scratch(step + 1, product.size()));
          lanczos_step<T>(Launch{reversed}, global(basis, "basis"), step + 1, product.size(),
                          global(product, "product"), tolerance, global(scratch, "scratch"),
                          global(scale, "scale"), global(coefficients, "coefficients"),
                          global(beta, "beta"), global(breakdown, "breakdown"));
        });
}

}  // namespace

void bind_operators(py::module_& m) {
  m.def("random_normal", [](const Array<float>& out, const Array<Int>& seeds, bool reversed) {
    random_normal(Launch{reversed}, global(seeds, "seeds"), seeds.size(), out.shape(1),
                  global(out, "out"));
  });
  m.def("filter_norms_random",
        [](const Array<double>& out, const Array<Int>& seeds, const Array<Int>& table,
           const Array<Int>& first_chunk, bool reversed) {
          const Int count = first_chunk.data()[table.shape(0)];
          Array<double> partial(seeds.size() * count);
          const Chunks chunks{table_of(table), global(first_chunk, "first_chunk"), count};
          filter_norms(Launch{reversed}, NormalStreams{global(seeds, "seeds")}, seeds.size(),
                       chunks, out.shape(1), global(partial, "partial"), global(out, "norms"));
        });
  bind_for<float>(m);
  bind_for<double>(m);
}
