// What the fused operators demand of their arguments.
#pragma once

#include <string>

#include "kernels/common/activation.h"
#include "operators/checks.h"

namespace fastreg {

// weighted_too: whether activations with learned slopes are known here.
inline Activation checked_activation(const char* op, const char* argument, std::string_view name, double parameter,
                                     bool weighted_too = false) {
  const auto is_known = [&](ActivationKind kind) { return weighted_too || !is_weighted(kind); };
  const std::optional<ActivationKind> kind = activation_named(name);
  if (!kind || !is_known(*kind)) {
    std::string known;
    for (int each = 0; each < kActivationKinds; ++each)
      if (is_known(ActivationKind(each))) known += (known.empty() ? "" : ", ") + std::string(kActivationNames[each]);
    TORCH_CHECK_VALUE(false, op, ": ", argument, " must be one of ", known, ", got ", name);
  }
  return {*kind, parameter};
}

// The learned slope of an activation, one or one per channel: undefined where it learns none.
inline at::Tensor checked_act_weight(const char* op, const Activation& act, const std::optional<at::Tensor>& weight,
                                     const at::Tensor& input) {
  if (!is_weighted(act.kind)) {
    TORCH_CHECK_VALUE(!weight || !weight->defined(), op, ": act_weight must be None where the activation is ",
                      kActivationNames[int(act.kind)], ", got a tensor");
    return {};
  }
  const int64_t channels = input.size(1);
  TORCH_CHECK(weight && weight->defined(), op, ": act_weight must have 1 or ", channels,
              " elements for prelu, got None");
  TORCH_CHECK(weight->dim() <= 1 && (weight->numel() == 1 || weight->numel() == channels), op,
              ": act_weight must have 1 or ", channels, " elements for prelu, got shape ", weight->sizes());
  check_parameter(op, "act_weight", *weight, input);
  return *weight;
}

// The rng_state of an operator that may do without.
inline const at::Tensor& checked_given(const char* op, const std::optional<at::Tensor>& rng_state) {
  TORCH_CHECK_VALUE(rng_state && rng_state->defined(), op, ": rng_state must be given where p is not 0, got None");
  return *rng_state;
}

}  // namespace fastreg
