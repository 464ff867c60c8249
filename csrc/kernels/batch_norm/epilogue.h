// What a fused batch norm computes besides: y = dropout(act(z)), z = batch_norm(pre_act(x)) + residual, rounded once.
#pragma once

#include "kernels/batch_norm/batch_norm.h"
#include "kernels/common/activation.h"
#include "kernels/common/vector.h"
#include "kernels/dropout/dropout.h"

namespace fastreg {

// Tensors are in the layout of x, null where there are none. Element j in memory order is number j of the dropout
// stream.
//
// Backward needs z where act's derivative depends on it: it takes the gate where there is one, else computes z again.
// The gradient of z is rounded to T, whether or not it is stored as the gradient of the residual: what follows from it
// is the same in all tiers.
template <class T>
struct Epilogue {
  using A = compute_t<T>;

  ActivationKind pre_act = ActivationKind::identity, act = ActivationKind::identity;
  A pre_parameter = 0, parameter = 0;
  const T* residual = nullptr;
  unsigned char* gate = nullptr;  // bit j: of element j in memory order. Written forward, read backward
  bool shares_gates = false;      // forward: the plan's
  bool drops = false;
  A keep_scale = 1;
  DropThreshold threshold = {};
  StateSource state = {};

  // Backward only.
  T* grad_residual = nullptr;
  ChannelValues bias = {};  // batch norm's

  void set_activations(const Activation& before, const Activation& after) {
    pre_act = before.kind;
    pre_parameter = A(before.parameter);
    act = after.kind;
    parameter = A(after.parameter);
  }
  void set_dropout(const DropoutParameters& dropout) {
    drops = true;
    keep_scale = A(dropout.transform.scale);
    threshold = dropout.threshold;
    state = dropout.state;
  }
};

// The same where act may be prelu, whose slopes are learned: kernels need registers for them.
template <class T>
struct SlopedEpilogue : Epilogue<T> {
  ChannelValues slopes = {};
  bool one_slope = false;  // the first of them, for all channels

  // Backward only.
  ChannelValues grad_slopes = {};  // of each channel, even where there is one slope; null: not wanted
};

// The same where act is relu or nothing, nothing is done to x, and nothing is dropped: without the code of all else a
// kernel has registers for more vectors in flight.
template <class T>
struct LeanEpilogue : Epilogue<T> {
  explicit LeanEpilogue(const Epilogue<T>& e) : Epilogue<T>(e) {}
};
template <class T>
bool is_lean(const Epilogue<T>& e) {
  return e.pre_act == ActivationKind::identity && !e.drops &&
         (e.act == ActivationKind::identity || e.act == ActivationKind::relu);
}
template <class E>
constexpr bool is_lean_type = false;
template <class T>
constexpr bool is_lean_type<LeanEpilogue<T>> = true;
// Whether its code is long, and has to be there once.
template <class E>
constexpr bool is_long = is_fused<E> && !is_lean_type<E>;

// f(the epilogue as a kernel of vectors of V elements takes it).
template <int V, class F>
auto with_kernel_epilogue(const NoEpilogue& e, F&& f) {
  return f(e);
}
template <int V, class T, class F>
auto with_kernel_epilogue(const SlopedEpilogue<T>& e, F&& f) {
  if constexpr (V > 1) {
    if (is_lean(e)) return f(LeanEpilogue<T>(e));
  }
  return f(e);
}

// Of any epilogue.
inline bool acts_before(const NoEpilogue&) { return false; }
template <class T>
bool acts_before(const Epilogue<T>& e) {
  return e.pre_act != ActivationKind::identity;
}
inline bool is_aligned(const NoEpilogue&) { return true; }
template <class T>
bool is_aligned(const Epilogue<T>& e) {
  return is_aligned(e.residual) && is_aligned(e.grad_residual);
}
inline bool has_residual_gradient(const NoEpilogue&) { return false; }
template <class T>
bool has_residual_gradient(const Epilogue<T>& e) {
  return e.grad_residual != nullptr;
}
inline bool has_slope_gradient(const NoEpilogue&) { return false; }
template <class T>
bool has_slope_gradient(const SlopedEpilogue<T>& e) {
  return e.grad_slopes.data != nullptr;
}
inline NoEpilogue without_residual_gradient(const NoEpilogue& e) { return e; }
template <class E>
E without_residual_gradient(E e) {
  e.grad_residual = nullptr;
  return e;
}

inline NoEpilogue without_slopes(const NoEpilogue& e) { return e; }
template <class T>
Epilogue<T> without_slopes(const SlopedEpilogue<T>& e) {
  return e;
}

}  // namespace fastreg
