// The Python module fastreg._C. The operators register themselves when it is loaded; it says how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(FASTREG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

#include <optional>
#include <string>
#include <variant>

#include "cpu/isa/kernels.h"
#include "kernels/batch_norm/estimate.h"
#include "kernels/batch_norm/plan.h"
#include "operators/results.h"
#include "operators/torch_patch.h"

#if defined(FASTREG_WITH_CUDA) || defined(FASTREG_HOST_EXECUTOR)
#include "kernels/batch_norm/tiers.h"
#endif

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

fastreg::DeviceLimits limits_of_current_device() {
#if defined(FASTREG_WITH_CUDA) || defined(FASTREG_HOST_EXECUTOR)
  int device = 0;
  fastreg::DeviceLimits limits;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = fastreg::query_device_limits(device, &limits);
  if (error == cudaSuccess) return limits;
  throw std::runtime_error(std::string("explain: the CUDA device does not answer: ") + cudaGetErrorString(error));
#else
  throw std::runtime_error("explain: device_limits must be given without the CUDA backend, got None");
#endif
}

struct AskedDevice {
  fastreg::DeviceLimits limits;
  std::optional<fastreg::DeviceSpeed> speed;
};
// A typical device of a compute capability, one of those whose speed is known, or the current one.
AskedDevice asked_device(const std::variant<std::monostate, int, std::string>& asked) {
  if (std::holds_alternative<std::monostate>(asked)) return {limits_of_current_device(), std::nullopt};
  std::string got;
  if (const std::string* name = std::get_if<std::string>(&asked)) {
    if (const auto device = fastreg::known_device(*name)) return {device->limits, device->speed};
    got = "'" + *name + "'";
  } else {
    if (const auto limits = fastreg::typical_limits(std::get<int>(asked))) return {*limits, std::nullopt};
    got = std::to_string(std::get<int>(asked));
  }
  std::string names;
  for (int i = 0; i < fastreg::kKnownDevices; ++i) names += std::string(", ") + fastreg::known_devices()[i].name;
  throw py::value_error("explain: device_limits must be 75, 80, 86, 90, 100, 120" + names + ", got " + got);
}

// What an estimate consists of, and the time of each tier that can do it.
py::dict estimates_of(const fastreg::BatchNormProblem& problem, const fastreg::BatchNormPlan& plan,
                      const fastreg::DeviceLimits& limits, const fastreg::DeviceSpeed& speed) {
  const fastreg::TimeEstimate time = fastreg::estimated_time(problem, plan, limits, speed);
  py::dict told, tiers;
  told["microseconds"] = time.total();
  told["launches"] = time.launches;
  told["memory"] = time.memory;
  told["l2"] = time.l2;
  told["reduction"] = time.reduction;
  for (const fastreg::Tier tier : fastreg::kTiers) {
    const fastreg::BatchNormPlan other = fastreg::plan_batch_norm(problem, limits, tier);
    if (other.possible())
      tiers[fastreg::tier_name(tier)] = fastreg::estimated_time(problem, other, limits, speed).total();
  }
  told["tiers"] = tiers;
  return told;
}

// For fastreg.explain.
py::dict plan_batch_norm(int64_t planes, int64_t channels, int64_t size, bool rows, int element_bytes, bool aligned,
                         bool training, bool backward, const std::optional<std::string>& act, bool residual,
                         const std::variant<std::monostate, int, std::string>& device,
                         const std::optional<std::string>& tier) {
  using fastreg::BatchNormPass;
  const AskedDevice on = asked_device(device);
  std::optional<fastreg::Tier> asked;
  if (tier && !(asked = fastreg::tier_named(*tier)))
    throw py::value_error("explain: tier must be the name of a tier, got '" + *tier + "'");
  const BatchNormPass pass = training ? (backward ? BatchNormPass::train_backward : BatchNormPass::train)
                                      : (backward ? BatchNormPass::eval_backward : BatchNormPass::eval);
  fastreg::BatchNormProblem problem = {{planes, channels, size, rows}, element_bytes, aligned, pass};
  if (act || residual) {
    const auto kind = fastreg::activation_named(act.value_or("identity"));
    if (!kind) throw py::value_error("explain: act must be the name of an activation, got '" + *act + "'");
    problem.fused = true;
    problem.epilogue = fastreg::epilogue_traffic(*kind, residual, backward);
  }
  const fastreg::BatchNormPlan plan = fastreg::plan_batch_norm(problem, on.limits, asked);
  py::dict told;
  told["compute_capability"] = on.limits.compute_capability;
  told["tier"] = fastreg::tier_name(plan.tier);
  if (!plan.possible()) {
    told["refusal"] = plan.refusal;
    return told;
  }
  told["launches"] = plan.launches;
  told["bytes_per_element"] = plan.bytes_per_element(element_bytes);
  if (on.speed) told["estimate"] = estimates_of(problem, plan, on.limits, *on.speed);
  if (plan.blocks == 0) return told;
  told["blocks"] = plan.blocks;
  told["threads"] = plan.threads;
  told["cluster"] = plan.cluster;
  told["channels_per_block"] = plan.channels_per_block;
  told["buffers"] = plan.buffers;
  told["shared_bytes"] = plan.shared_bytes;
  if (plan.tier == fastreg::Tier::grid || plan.tier == fastreg::Tier::l2) {
    told["splits"] = plan.splits;
    told["reread"] = plan.reread;
  }
  return told;
}

// Python's functions that patched calls ask and tell; never destroyed, as Python may be gone by then. The first says
// whether a tensor with a dispatch of its own only stands for a plain one. The second is told of each call: (op, shape,
// dtype, bytes of an element, device, draws, records, why_left).
py::object& is_plain_function() {
  static auto& function = *new py::object;
  return function;
}
py::object& told_of_patched() {
  static auto& observer = *new py::object;
  return observer;
}

void tell(const fastreg::PatchedCall& call) {
  if (!Py_IsInitialized()) return;
  const at::Tensor& x = call.input;
  const std::string shape = x.is_nested() ? "nested" : c10::str(x.sym_sizes());
  const py::gil_scoped_acquire gil;
  const py::object observer = told_of_patched();
  if (!observer || observer.is_none()) return;
  try {
    const py::object why_left = call.why_left ? py::object(py::str(call.why_left)) : py::object(py::none());
    observer(call.op, shape, c10::toString(x.scalar_type()), x.element_size(), x.device().str(), call.draws,
             call.records, why_left);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("what is told of patched calls");
  }
}

bool is_plain(void* object) {
  const py::gil_scoped_acquire gil;
  return is_plain_function()(py::handle(static_cast<PyObject*>(object))).cast<bool>();
}

void patch_torch(const py::object& function) {
  is_plain_function() = function;
  fastreg::patch_torch(&is_plain);
}

void observe_patched(const py::object& observer) {
  fastreg::observe_patched(nullptr);
  told_of_patched() = observer;
  if (!observer.is_none()) fastreg::observe_patched(&tell);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info, "How this extension was built.");
  module.def("plan_batch_norm", &plan_batch_norm, "What fastreg.explain tells.");
  module.def("empty_cache", &fastreg::empty_cache, py::call_guard<py::gil_scoped_release>(),
             "Give the CPU buffers that are not in use back to the system.");
  module.def("cached_bytes", &fastreg::cached_bytes, "The bytes of the CPU buffers that are not in use.");
  module.def("patch_torch", &patch_torch,
             "What fastreg.patch_torch does, once. Whether a tensor with a dispatch of its own is plain.");
  module.def("unpatch_torch", &fastreg::unpatch_torch, "What fastreg.unpatch_torch does, at last.");
  module.def("observe_patched", &observe_patched, "Tell a function of each patched call; None: nobody is told.");
  module.def("give_states_to_patched", &fastreg::give_states_to_patched,
             "Whether patched dropouts are given their random states by Python.");
}
