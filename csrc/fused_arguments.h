// What the fused operators demand of their arguments.
#pragma once

#include <string>

#include "checks.h"
#include "kernels/activation.h"

namespace fastreg {

inline Activation checked_activation(const char* op, const char* argument, std::string_view name, double parameter) {
  const std::optional<ActivationKind> kind = activation_named(name);
  if (!kind) {
    std::string known;
    for (const std::string_view one : kActivationNames) known += (known.empty() ? "" : ", ") + std::string(one);
    TORCH_CHECK_VALUE(false, op, ": ", argument, " must be one of ", known, ", got ", name);
  }
  return {*kind, parameter};
}

// The rng_state of an operator that may do without.
inline const at::Tensor& checked_given(const char* op, const std::optional<at::Tensor>& rng_state) {
  TORCH_CHECK_VALUE(rng_state && rng_state->defined(), op, ": rng_state must be given where p is not 0, got None");
  return *rng_state;
}

}  // namespace fastreg
