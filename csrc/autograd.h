// How the autograd nodes of the operators call operators.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

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
// The same in a backward pass, except where that is to be differentiated again (create_graph=True).
template <class Operator, class... Arguments>
auto call_in_backward(const Operator& op, Arguments&&... arguments) {
  return at::GradMode::is_enabled() ? op.call(std::forward<Arguments>(arguments)...)
                                    : call_below(op, std::forward<Arguments>(arguments)...);
}

inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

// rng_state, or a copy of it that can be saved for the backward pass.
inline at::Tensor savable(const at::Tensor& rng_state) {
  return rng_state.is_inference() && !c10::InferenceMode::is_enabled() ? rng_state.clone() : rng_state;
}

inline bool requires_grad(const std::optional<at::Tensor>& t) { return t && t->defined() && t->requires_grad(); }

}  // namespace fastreg
