// The Python module fastreg._C. The operators register themselves when it is loaded; it says how it was built.
#include <pybind11/pybind11.h>

#if defined(FASTREG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

#include <string>

#include "cpu/kernels.h"

namespace {

namespace py = pybind11;

// fastreg/_extension.py looks for these words in the file, before it loads it: loading an extension into another torch
// than it was compiled against fails with an unreadable message at best. The attribute keeps the words
// together: the compiler takes a string apart that it only copies from.
constexpr char kBuiltFor[] __attribute__((used)) = "fastreg._C was built for torch " FASTREG_TORCH_VERSION;

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "g++ " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["torch"] = FASTREG_TORCH_VERSION;
  info["compiler"] = kCompiler;
#if defined(FASTREG_HOST_EXECUTOR)
  info["instruction_set"] = "CUDA kernels in the host executor";
#else
  info["instruction_set"] = fastreg::cpu::instruction_set();
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(FASTREG_WITH_CUDA)
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = FASTREG_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) { module.def("build_info", &build_info, "How this extension was built."); }
