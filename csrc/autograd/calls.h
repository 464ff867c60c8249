// How derivatives call operators, and what forward-mode AD asks of them.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fw_primal.h>
#include <c10/core/InferenceMode.h>

#include <array>
#include <optional>
#include <tuple>
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

// rng_state, or a copy of it that can be saved for the backward pass.
inline at::Tensor savable(const at::Tensor& rng_state) {
  return rng_state.is_inference() && !c10::InferenceMode::is_enabled() ? rng_state.clone() : rng_state;
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

// A backward operator's results.
template <class... Tensors>
std::array<at::Tensor, sizeof...(Tensors)> in_array(std::tuple<Tensors...> results) {
  return std::apply([](auto&... each) { return std::array{std::move(each)...}; }, results);
}

inline bool requires_grad(const std::optional<at::Tensor>& t) { return t && t->defined() && t->requires_grad(); }

// Whether autograd has to record what is computed of these.
template <class... Tensors>
bool is_recorded(const Tensors&... inputs) {
  return at::GradMode::is_enabled() && (requires_grad(inputs) || ...);
}

}  // namespace fastreg
