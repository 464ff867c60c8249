// How the autograd nodes of the operators call operators.
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fw_primal.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>
#include <memory>
#include <utility>

namespace fastreg {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Calls an operator past its own autograd.
template <class Operator, class... Arguments>
auto call_below(const Operator& op, Arguments&&... arguments) {
  const at::AutoDispatchBelowAutograd guard;
  return op.call(std::forward<Arguments>(arguments)...);
}
// The same in the formula of a derivative, except where that is to be differentiated again (create_graph=True).
template <class Operator, class... Arguments>
auto call_in_backward(const Operator& op, Arguments&&... arguments) {
  return at::GradMode::is_enabled() ? op.call(std::forward<Arguments>(arguments)...)
                                    : call_below(op, std::forward<Arguments>(arguments)...);
}

inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

// What the node of a batch norm in evaluation saved: running statistics, too, which training updates in place.
inline torch::autograd::variable_list saved_in_evaluation(torch::autograd::AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (c10::Error& error) {
    if (std::strstr(error.what_without_backtrace(), "modified by an inplace operation"))
      error.add_context(
          "batch_norm in evaluation: if the tensor is one of its running statistics, a forward pass in training has "
          "updated it since; the gradient of what was computed before is lost then: call backward before that pass");
    throw;
  }
}

// rng_state, or a copy of it that can be saved for the backward pass.
inline at::Tensor savable(const at::Tensor& rng_state) {
  return rng_state.is_inference() && !c10::InferenceMode::is_enabled() ? rng_state.clone() : rng_state;
}

// Hides torch.func's transforms from torch::autograd::Function, which does not run under them, as a forward might
// compute past them. Ours must reveal them before they call operators, which the dispatcher hands from one transform to
// the next.
class HiddenTransforms {
 public:
  HiddenTransforms() : hidden_(std::move(at::functorch::functorchTLSAccessor())) {}
  HiddenTransforms(const HiddenTransforms&) = delete;
  HiddenTransforms& operator=(const HiddenTransforms&) = delete;
  ~HiddenTransforms() { reveal(); }
  void reveal() {
    if (hidden_) at::functorch::functorchTLSAccessor() = std::move(hidden_);
  }

 private:
  std::unique_ptr<at::functorch::FuncTorchTLSBase> hidden_;
};

// Node::apply(arguments..., compute), where compute is what forward calls first.
template <class Node, class Compute, class... Arguments>
auto record(const Compute& compute, Arguments&&... arguments) {
  HiddenTransforms transforms;
  return Node::apply(std::forward<Arguments>(arguments)..., [&] {
    transforms.reveal();
    const at::AutoGradMode outer_transforms_record_too(true);
    return compute();
  });
}

// Forward-mode AD: the tangent of t at the one level there is, undefined where there is none, and t without it.
inline at::Tensor tangent(const std::optional<at::Tensor>& t) {
  return t && t->defined() ? t->_fw_grad(0) : at::Tensor();
}
inline bool has_tangent(const std::optional<at::Tensor>& t) { return tangent(t).defined(); }
inline at::Tensor primal(const at::Tensor& t) { return has_tangent(t) ? t._fw_primal(0) : t; }
inline std::optional<at::Tensor> primal(const std::optional<at::Tensor>& t) {
  return t && t->defined() ? std::optional(primal(*t)) : t;
}

inline bool requires_grad(const std::optional<at::Tensor>& t) { return t && t->defined() && t->requires_grad(); }

}  // namespace fastreg
