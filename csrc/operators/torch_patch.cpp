// torch's own dropout and batch norm operators, computed by fastreg's while they are patched.
//
// aten::dropout and its kin are composed of other operators, which the dispatcher allows to be replaced: by kernels for
// the autograd key of a device, past which every call of a tensor there comes, whoever makes it; for the device's own
// key, where calls arrive that autograd is not to see; and for the key at which torch.func's transforms begin. What
// fastreg does not compute goes on to torch's own function, which is called by its name in C++: nothing dispatches to
// it again. The registrations are objects, and go with them.
#include "operators/torch_patch.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/alpha_dropout_native.h>
#include <ATen/ops/batch_norm_native.h>
#include <ATen/ops/dropout_native.h>
#include <ATen/ops/feature_alpha_dropout_native.h>
#include <ATen/ops/feature_dropout_native.h>
#include <ATen/ops/native_dropout_native.h>
#include <ATen/ops/ones_like.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "operators/checks.h"
#include "operators/torch_patch_limits.h"

namespace fastreg {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Ints = at::OptionalSymIntArrayRef;
using Doubles = std::optional<at::ArrayRef<double>>;

std::atomic<void (*)(const PatchedCall&)> observer{nullptr};
std::atomic<bool> states_are_given{false};

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// ---- which calls are fastreg's

bool records(const Tensor& x) { return at::GradMode::is_enabled() && x.requires_grad(); }

// True where fastreg takes the call.
bool decide(const char* op, const Tensor& x, const char* why_left, int64_t dims = 0) {
  if (const auto observe = observer.load(std::memory_order_relaxed)) {
    int64_t draws = 0;
    if (!has_own_dispatch(x) && !is_wrapped_by_transform(x) && !x.is_nested() && x.layout() == at::kStrided)
      draws = dims && dims <= x.dim() ? c10::multiply_integers(x.sizes().slice(0, size_t(dims))) : x.numel();
    observe({op, x, draws, records(x), why_left});
  }
  return why_left == nullptr;
}

// ---- dropout

constexpr char kNothingDropped[] = "nothing is dropped";

const char* why_not_dropped(const Tensor& x, double p, bool train, int64_t dims) {
  if (!train || p == 0.0) return kNothingDropped;
  if (!(p > 0.0 && p <= 1.0)) return "p is not in [0, 1]";
  if (const char* why = why_not(x)) return why;
  if (x.dim() < dims) return "too few dimensions";
  return !has_own_dispatch(x) && x.sym_numel() == 0 ? kNothingDropped : nullptr;
}

// Compilers see a pure operator and where its random state comes from.
bool is_traced(const Tensor& x) {
  using c10::impl::TorchDispatchModeKey;
  using c10::impl::TorchDispatchModeTLS;
  if (has_own_dispatch(x) || is_functionalized(x)) return true;
  return TorchDispatchModeTLS::any_modes_set() && (TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FAKE) ||
                                                   TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY) ||
                                                   TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL));
}

Tensor by_python(const char* op, const Tensor& x, double p, bool inplace, std::optional<int64_t> dims, bool alpha,
                 bool traced) {
  static const auto call =
      find_operator<Tensor(c10::string_view, const Tensor&, double, bool, std::optional<int64_t>, bool, bool)>(
          "fastreg::patched_dropout");
  return call.call(op, x, p, inplace, dims, alpha, traced);
}

// What SELU saturates at: fastreg/functional/_dropout.py.
constexpr double kAlpha = 1.7580993408473766;

// Of alpha dropout; with p = 1 all become 0, as without it.
std::array<double, 3> alpha_transform(double p) {
  const double a = 1.0 / std::sqrt((kAlpha * kAlpha * p + 1.0) * (1.0 - p));
  return {a, a * kAlpha * p, a * kAlpha * (p - 1.0)};
}

// What fastreg's operators take of a form: the transform points into it.
template <class Form>
struct Arguments {
  explicit Arguments(double p) {
    if (Form::kDims) dims = Form::kDims;
    if (Form::kAlpha && p < 1.0) transform = values = alpha_transform(p);
  }
  Arguments(const Arguments&) = delete;

  std::optional<int64_t> dims;
  std::array<double, 3> values;
  Doubles transform;
};

// Whether a context of Python's gives calls their random states.
bool is_given_its_state() { return states_are_given.load(std::memory_order_relaxed); }

// An operator of torch's: Form has name, dims (of feature dropout, else 0), alpha, and torch's functions.
template <class Form>
Tensor dropout(const Tensor& x, double p, bool train) {
  if (!decide(Form::kName, x, why_not_dropped(x, p, train, Form::kDims), Form::kDims)) return Form::torchs(x, p, train);
  const Arguments<Form> given(p);
  if (const bool traced = is_traced(x); traced || is_given_its_state())
    return by_python(Form::kName, x, p, false, given.dims, Form::kAlpha, traced);
  if (!given.dims) {
    static const auto op =
        find_operator<std::tuple<Tensor, Tensor>(const Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded");
    return std::get<0>(op.call(x, p, std::nullopt, given.transform));
  }
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, double, Ints, Doubles, const OptionalTensor&)>(
          "fastreg::feature_dropout_seeded");
  return std::get<0>(op.call(x, *given.dims, p, std::nullopt, given.transform, std::nullopt));
}

template <class Form>
Tensor& dropout_(Tensor& x, double p, bool train) {
  if (!decide(Form::kNameInPlace, x, why_not_dropped(x, p, train, Form::kDims), Form::kDims))
    return Form::torchs_(x, p, train);
  const Arguments<Form> given(p);
  if (const bool traced = is_traced(x); traced || is_given_its_state()) {
    by_python(Form::kName, x, p, true, given.dims, Form::kAlpha, traced);
    return x;
  }
  if (!given.dims) {
    static const auto op = find_operator<Tensor(Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded_");
    op.call(x, p, std::nullopt, given.transform);
    return x;
  }
  static const auto op =
      find_operator<Tensor(Tensor&, int64_t, double, Ints, Doubles)>("fastreg::feature_dropout_seeded_");
  op.call(x, *given.dims, p, std::nullopt, given.transform);
  return x;
}

struct Elements {
  static constexpr char kName[] = "dropout", kNameInPlace[] = "dropout_";
  static constexpr int64_t kDims = 0;
  static constexpr bool kAlpha = false;
  static Tensor torchs(const Tensor& x, double p, bool train) { return at::native::dropout(x, p, train); }
  static Tensor& torchs_(Tensor& x, double p, bool train) { return at::native::dropout_(x, p, train); }
};
struct Features {
  static constexpr char kName[] = "feature_dropout", kNameInPlace[] = "feature_dropout_";
  static constexpr int64_t kDims = 2;
  static constexpr bool kAlpha = false;
  static Tensor torchs(const Tensor& x, double p, bool train) { return at::native::feature_dropout(x, p, train); }
  static Tensor& torchs_(Tensor& x, double p, bool train) { return at::native::feature_dropout_(x, p, train); }
};
struct AlphaElements {
  static constexpr char kName[] = "alpha_dropout", kNameInPlace[] = "alpha_dropout_";
  static constexpr int64_t kDims = 0;
  static constexpr bool kAlpha = true;
  static Tensor torchs(const Tensor& x, double p, bool train) { return at::native::alpha_dropout(x, p, train); }
  static Tensor& torchs_(Tensor& x, double p, bool train) { return at::native::alpha_dropout_(x, p, train); }
};
struct AlphaFeatures {
  static constexpr char kName[] = "feature_alpha_dropout", kNameInPlace[] = "feature_alpha_dropout_";
  static constexpr int64_t kDims = 2;
  static constexpr bool kAlpha = true;
  static Tensor torchs(const Tensor& x, double p, bool train) { return at::native::feature_alpha_dropout(x, p, train); }
  static Tensor& torchs_(Tensor& x, double p, bool train) { return at::native::feature_alpha_dropout_(x, p, train); }
};

// Gives the mask as well, as its callers ask for it.
std::tuple<Tensor, Tensor> native_dropout(const Tensor& x, double p, std::optional<bool> train) {
  const char* why = why_not_dropped(x, p, train.value_or(true), 0);
  if (!decide("native_dropout", x, why)) return at::native::native_dropout_cpu(x, p, train);  // for any device
  static const auto seeded =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded");
  static const auto given =
      find_operator<Tensor(const Tensor&, double, const Tensor&, Ints, Ints, Doubles)>("fastreg::dropout");
  const std::array<double, 3> kept_as_they_are = {1.0, -0.0, 0.0};
  auto [output, rng_state] = seeded.call(x, p, std::nullopt, std::nullopt);
  const Tensor ones = at::ones_like(output, output.options().dtype(at::kHalf));
  const Tensor mask = given.call(ones, p, rng_state, output.sym_strides(), std::nullopt, Doubles(kept_as_they_are));
  return {std::move(output), mask.to(at::kBool)};
}

// ---- batch norm

const char* why_not_parameter(const OptionalTensor& t, const Tensor& x, bool is_statistic) {
  if (!t || !t->defined()) return nullptr;
  if (has_own_dispatch(*t) && !is_plain(*t)) return "a parameter of a tensor subclass with a dispatch of its own";
  const bool goes_with_dtype = t->scalar_type() == x.scalar_type() ||
                               (t->scalar_type() == at::kFloat && at::isReducedFloatingType(x.scalar_type()));
  if (t->device() != x.device() || !goes_with_dtype || t->layout() != at::kStrided || t->dim() != 1 ||
      t->sym_size(0) != x.sym_size(1))
    return "a parameter of another shape, dtype or device";
  return is_statistic && records(*t) ? "a running statistic that requires grad" : nullptr;
}

bool has_memory(const OptionalTensor& t) {
  return t && t->defined() && !has_own_dispatch(*t) && !is_wrapped_by_transform(*t) && t->has_storage();
}

// Whether training would write to what it also reads.
bool overlap(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& mean,
             const OptionalTensor& var) {
  for (const auto* written : {&mean, &var}) {
    if (!has_memory(*written)) continue;
    if (at::has_internal_overlap(**written) == at::MemOverlap::Yes) return true;
    if (has_memory(x) && may_overlap(**written, x)) return true;
    for (const auto* other : {&weight, &bias, &mean, &var})
      if (other != written && has_memory(*other) && may_overlap(**written, **other)) return true;
  }
  return false;
}

const char* why_not_normalized(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                               double eps) {
  if (const char* why = why_not(x)) return why;
  if (is_functionalized(x)) return "functionalized";
  if (x.dim() < 2) return "too few dimensions";
  if (x.sym_numel() == 0) return "no elements";
  const bool has_mean = running_mean && running_mean->defined(), has_var = running_var && running_var->defined();
  if (has_mean != has_var || !(training || has_mean)) return "running statistics that are not given";
  if (!(training ? eps > 0.0 : eps >= 0.0)) return "eps is not positive";
  if (training && x.sym_numel() == x.sym_size(1)) return "one value per channel";
  for (const auto* parameter : {&weight, &bias})
    if (const char* why = why_not_parameter(*parameter, x, false)) return why;
  for (const auto* statistic : {&running_mean, &running_var})
    if (const char* why = why_not_parameter(*statistic, x, true)) return why;
  return training && overlap(x, weight, bias, running_mean, running_var) ? "running statistics in shared memory"
                                                                         : nullptr;
}

template <class Torchs>
Tensor batch_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
                  double eps, bool cudnn_enabled) {
  if (!decide("batch_norm", x, why_not_normalized(x, weight, bias, running_mean, running_var, training, eps)))
    return Torchs::batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled);
  if (training) {
    static const auto op = find_operator<std::tuple<Tensor, Tensor>(
        const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
        const OptionalTensor&, std::optional<double>, double)>("fastreg::batch_norm_train");
    return std::get<0>(op.call(x, weight, bias, running_mean, running_var, std::nullopt, momentum, eps));
  }
  static const auto op = find_operator<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                              const Tensor&, const Tensor&, double)>("fastreg::batch_norm_eval");
  return op.call(x, weight, bias, *running_mean, *running_var, eps);
}

struct Normalization {
  template <class... Arguments>
  static Tensor batch_norm(const Arguments&... arguments) {
    return at::native::batch_norm(arguments...);
  }
};

// ---- below torch.func's transforms

// What torch does at the key where transforms begin, as it was before the patch.
struct Kernel {
  c10::OperatorHandle op;
  c10::SafeKernelFunction function;
};
std::unordered_map<std::string, Kernel> torchs_transforms;

template <class... Arguments>
Tensor transformed_by_torch(const char* name, const Arguments&... arguments) {
  const Kernel& kernel = torchs_transforms.at(name);
  torch::jit::Stack stack;
  (stack.emplace_back(arguments), ...);
  kernel.function.callBoxed(kernel.op, c10::DispatchKeySet(DispatchKey::FuncTorchDynamicLayerFrontMode), &stack);
  return stack.back().toTensor();
}

template <class Form>
struct InTransforms : Form {
  static Tensor torchs(const Tensor& x, double p, bool train) { return transformed_by_torch(Form::kName, x, p, train); }
  static Tensor& torchs_(Tensor& x, double p, bool train) {
    transformed_by_torch(Form::kNameInPlace, x, p, train);
    return x;
  }
};
struct NormalizationInTransforms {
  template <class... Arguments>
  static Tensor batch_norm(const Arguments&... arguments) {
    return transformed_by_torch("batch_norm", arguments...);
  }
};

// ---- registration

std::vector<std::unique_ptr<torch::Library>> registrations;

template <template <class> class At, class Norm>
void register_at(DispatchKey key) {
  auto& m = *registrations.emplace_back(
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__));
  m.impl("dropout", TORCH_FN(dropout<At<Elements>>));
  m.impl("dropout_", TORCH_FN(dropout_<At<Elements>>));
  m.impl("feature_dropout", TORCH_FN(dropout<At<Features>>));
  m.impl("feature_dropout_", TORCH_FN(dropout_<At<Features>>));
  m.impl("alpha_dropout", TORCH_FN(dropout<At<AlphaElements>>));
  m.impl("alpha_dropout_", TORCH_FN(dropout_<At<AlphaElements>>));
  m.impl("feature_alpha_dropout", TORCH_FN(dropout<At<AlphaFeatures>>));
  m.impl("feature_alpha_dropout_", TORCH_FN(dropout_<At<AlphaFeatures>>));
  m.impl("batch_norm", TORCH_FN(batch_norm<Norm>));
  if (key == DispatchKey::CPU || key == DispatchKey::CUDA) m.impl("native_dropout", TORCH_FN(native_dropout));
}

template <class Form>
using Alone = Form;

void remember_torchs_transforms() {
  for (const char* name : {"dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout",
                           "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "batch_norm"}) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("aten::") + name).c_str(), "");
    torchs_transforms.emplace(
        name, Kernel{op, op.getComputedKernelForDispatchKey(DispatchKey::FuncTorchDynamicLayerFrontMode)});
  }
}

// The dispatcher warns of kernels that are replaced, which is what is wanted here.
struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

void patch_torch(bool (*is_plain)(void* object)) {
  TORCH_CHECK(!is_patched(), "patch_torch: torch must not be patched, got a patched one");
  is_plain_object = is_plain;
  if (torchs_transforms.empty()) remember_torchs_transforms();
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  for (const DispatchKey key : {DispatchKey::AutogradCPU, DispatchKey::CPU}) register_at<Alone, Normalization>(key);
  if (kTakesCuda)
    for (const DispatchKey key : {DispatchKey::AutogradCUDA, DispatchKey::CUDA}) register_at<Alone, Normalization>(key);
  register_at<InTransforms, NormalizationInTransforms>(DispatchKey::FuncTorchDynamicLayerFrontMode);
}

void unpatch_torch() { registrations.clear(); }

bool is_patched() { return !registrations.empty(); }

void observe_patched(void (*observe)(const PatchedCall&)) { observer = observe; }

void give_states_to_patched(bool given) { states_are_given = given; }

}  // namespace fastreg
