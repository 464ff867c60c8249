// Batch norm with an activation and nothing else: batch norm's own passes, which apply it while they are there. Each
// function tells whether it has done the work.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

template <class T>
FASTREG_HD bool is_bare(const Epilogue<T>& e) {
  return e.pre_act.kind == ActivationKind::identity && !e.residual && !e.gates && !e.keep;
}

template <class T>
bool normalize_bare(const Section& s, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f,
                    const Epilogue<T>& e) {
  using C = compute_t<T>;
  if (!is_bare(e)) return false;
  bool is_done = false;
  with_constant(e.act.kind, [&](auto kind) {
    if constexpr (is_vectorised<C>(kind)) {
      normalize_with(s, x, y, f, Activated<kind, C, T>{C(e.act.parameter)});
      is_done = true;
    }
  });
  return is_done;
}

// f(act) with an activation whose argument the passes of the backward pass compute twice. Of others the gradient is
// left in memory, where 16 bits have no place for it.
template <class T, class F>
FASTREG_HD bool with_gradient(const Activation& act, F&& f) {
  using C = compute_t<T>;
  if (act.kind == ActivationKind::relu) {
    f(Activated<ActivationKind::relu, C>{});
    return true;
  }
  return false;
}

// S: the type of sums.
template <class S, class T>
bool grad_sums_bare(const Section& s, const T* dy, const T* x, const ForwardCoefficients<compute_t<T>>& f,
                    const double* mean, const Epilogue<T>& e, double* sums) {
  if constexpr (std::is_same_v<S, compute_t<T>>)
    return is_bare(e) && with_gradient<T>(e.act, [&](auto act) {
             grad_sums_with<S>(s, dy, x, mean, sums, ActGates<S, decltype(act)>{f, s.planes.channels, act});
           });
  return false;
}

template <class T>
bool grad_input_bare(const Section& s, const T* dy, const T* x, T* dx, const T* dresidual,
                     const ForwardCoefficients<compute_t<T>>& f, const BackwardCoefficients<compute_t<T>>& b,
                     const Epilogue<T>& e) {
  return is_bare(e) && dx && !dresidual && b.mean_dy &&
         with_gradient<T>(e.act, [&](auto act) { grad_input_with(s, dy, x, dx, b, f.shift, act); });
}

}  // namespace fastreg::cpu::FASTREG_ISA
