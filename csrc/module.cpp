// Python bindings of ld3m._C: addresses, sizes and scalars in, nothing out; Python checks and allocates.

#include <pybind11/pybind11.h>

#include "device.h"
#include "geglu.h"
#include "group_norm_silu.h"
#include "group_select.h"
#include "instance_norm_relu_pool.h"
#include "nearest_code.h"
#include "reverse_step.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    m.doc() = "C++ and CUDA kernels of ld3m; called by ld3m.ops only.";
    m.attr("__version__") = LD3M_VERSION;
    m.def("geglu_fwd", &ld3m::geglu_fwd, no_gil);
    m.def("geglu_bwd", &ld3m::geglu_bwd, no_gil);
    m.def("group_norm_silu_fwd", &ld3m::group_norm_silu_fwd, no_gil);
    m.def("group_norm_silu_bwd", &ld3m::group_norm_silu_bwd, no_gil);
    m.def("group_scores", &ld3m::group_scores, no_gil);
    m.def("instance_norm_relu_pool_fwd", &ld3m::instance_norm_relu_pool_fwd, no_gil);
    m.def("instance_norm_relu_pool_bwd", &ld3m::instance_norm_relu_pool_bwd, no_gil);
    m.def("instance_norm_relu_pool_last_fwd", &ld3m::instance_norm_relu_pool_last_fwd, no_gil);
    m.def("instance_norm_relu_pool_last_bwd", &ld3m::instance_norm_relu_pool_last_bwd, no_gil);
    m.def("nearest_code", &ld3m::nearest_code, no_gil);
    m.def("reverse_step_fwd", &ld3m::reverse_step_fwd, no_gil);
    m.def("reverse_step_bwd", &ld3m::reverse_step_bwd, no_gil);
#ifdef LD3M_CUDA
    m.attr("has_cuda") = true;
    m.attr("cuda_archs") = LD3M_CUDA_ARCHS;  // "80,86,…"
    m.def("cuda_driver_version", &ld3m::cuda_driver_version);
    m.def("cuda_runtime_version", &ld3m::cuda_runtime_version);
    m.def("instance_norm_relu_pool_fwd_cuda", &ld3m::instance_norm_relu_pool_fwd_cuda, no_gil);
    m.def("instance_norm_relu_pool_bwd_cuda", &ld3m::instance_norm_relu_pool_bwd_cuda, no_gil);
    m.def("nearest_code_cuda", &ld3m::nearest_code_cuda, no_gil);
    m.def("reverse_step_fwd_cuda", &ld3m::reverse_step_fwd_cuda, no_gil);
    m.def("reverse_step_bwd_cuda", &ld3m::reverse_step_bwd_cuda, no_gil);
#else
    m.attr("has_cuda") = false;
#endif
}
