// The stages around normalisation, as a thread computes them for a vector of V elements: see epilogue.h.
//
// Instructions. The activations are chosen once for a vector, by branches that all threads take alike. A block of the
// dropout stream has 8 elements: a vector of 8 makes one Philox call, one of 4 or fewer makes one, too, and uses a
// part. Gates. Bit j belongs to element j of the tensor. A thread that has a byte's eight elements writes it; of two
// neighbours with four each, in lanes 2 k and 2 k + 1, the even one does, after a shuffle. Where that is not so (see
// BatchNormPlan) bits are set by atomic operations on words that are zero before: their order does not matter. Slopes
// of prelu are kept in registers beside their channels' steps; the terms of their gradients are reduced with batch
// norm's.
//
// Bytes per element besides batch norm's, s = sizeof(T): forward s for the residual, 1 / 8 for gates. Backward s for
// the gradient of the residual, s for the residual, or 1 / 8 for gates, each time that dy is read.
#pragma once

#include <type_traits>

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/epilogue.h"
#include "kernels/dropout/common.cuh"

namespace fastreg {

// ---- Nothing ----

template <class T, class E>
class Stages;

template <class T>
class Stages<T, NoEpilogue> {
 public:
  using A = compute_t<T>;
  using OutputStep = ForwardStep<A>;
  struct SumStep {
    A centre, inverse_unit, scale;
  };
  using InputStep = BackwardStep<A>;
  using Totals = GradSums<A>;
  template <int V>
  struct Operands {};

  __device__ __forceinline__ explicit Stages(const NoEpilogue&) {}

  template <int V>
  __device__ __forceinline__ Operands<V> forward_operands(int64_t) const {
    return {};
  }
  template <int V>
  __device__ __forceinline__ Operands<V> backward_operands(int64_t) const {
    return {};
  }
  template <int V>
  __device__ __forceinline__ Values<T, V> input(const Vector<T, V>& x) const {
    return to_compute(x);
  }
  template <int V, int K>
  __device__ __forceinline__ Vector<T, V> output(const Vector<T, V>& x, const Operands<V>&, int64_t,
                                                 const ForwardStep<A> (&steps)[K]) const {
    return normalised(x, steps);
  }
  template <int V, class Step, int K, class AddTerm>
  __device__ __forceinline__ Vector<T, V> argument_gradient(const Vector<T, V>& dy, const Values<T, V>&,
                                                            const Operands<V>&, int64_t, const Step (&)[K],
                                                            AddTerm&&) const {
    return dy;
  }
  template <int V>
  __device__ __forceinline__ void store_residual_gradient(int64_t, const Vector<T, V>&) const {}
  template <int V>
  __device__ __forceinline__ Vector<T, V> through_input(const Values<T, V>& gradients, const Vector<T, V>&) const {
    return from_compute(gradients);
  }

  __device__ __forceinline__ OutputStep output_step(const ForwardStep<A>& step, int64_t) const { return step; }
  // scales: the step serves dx in evaluation, too.
  __device__ __forceinline__ SumStep sum_step(const Normalisation<A>& n, int64_t c, const ChannelValues& weight,
                                              bool scales) const {
    return {n.centre, inverse_unit(n.invstd), scales ? scale_of<T>(n, c, weight) : A(1)};
  }
  static __device__ __forceinline__ A scale(const SumStep& step) { return step.scale; }
  __device__ __forceinline__ InputStep input_step(const Normalisation<A>& n, const GradMeans<A>& means, int64_t c,
                                                  const ChannelValues& weight) const {
    return backward_step<T>(n, means, c, weight);
  }

  static __device__ __forceinline__ Totals total(const GradSums<A>& sums, A) { return sums; }
  __device__ __forceinline__ void write_slope_gradient(const Totals&, int64_t) const {}
};

// ---- Fused ----

// The argument of act before the residual is added: the same bits forward and backward, whatever the compiler fuses.
template <class A, class Step>
__device__ __forceinline__ A affine(A value, const Step& s) {
  return multiply_add(value - s.centre, s.scale, s.shift);
}

// E: Epilogue<T>, SlopedEpilogue<T> or LeanEpilogue<T>.
template <class T, class E>
class Stages {
  static constexpr bool kSloped = std::is_same_v<E, SlopedEpilogue<T>>, kLean = is_lean_type<E>;

 public:
  using A = compute_t<T>;
  struct SlopedStep : ForwardStep<A> {
    A act_slope;
  };
  using OutputStep = std::conditional_t<kSloped, SlopedStep, ForwardStep<A>>;
  struct SumStep : OutputStep {
    A inverse_unit;
  };
  struct InputStep : BackwardStep<A> {
    A shift, act_slope;
  };
  using Totals = std::conditional_t<kSloped, SlopeSums<A>, GradSums<A>>;
  template <int V>
  struct Operands {
    Vector<T, V> residual;
    unsigned char gates;  // the byte with those of its elements
  };

  __device__ __forceinline__ explicit Stages(const E& epilogue) : e_(epilogue) {
    if (!kLean && e_.drops) state_ = read_state(e_.state, blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0);
  }

  template <int V>
  __device__ __forceinline__ Operands<V> forward_operands(int64_t offset) const {
    Operands<V> operands = {};
    if (e_.residual != nullptr)
      operands.residual = load_streaming(reinterpret_cast<const Vector<T, V>*>(e_.residual + offset));
    return operands;
  }
  template <int V>
  __device__ __forceinline__ Operands<V> backward_operands(int64_t offset) const {
    if (e_.gate == nullptr) return forward_operands<V>(offset);
    return {{}, load(e_.gate + offset / 8)};
  }

  // pre_act(x): what is normalised.
  template <int V>
  __device__ __forceinline__ Values<T, V> input(const Vector<T, V>& x) const {
    Values<T, V> values = to_compute(x);
    if constexpr (kLean) return values;
    with_unweighted_kind(e_.pre_act, [&](auto kind) {
#pragma unroll
      for (int e = 0; e < V; ++e) values.value[e] = activate(decltype(kind)::value, values.value[e], e_.pre_parameter);
    });
    return values;
  }

  template <int V, int K>
  __device__ __forceinline__ Vector<T, V> output(const Vector<T, V>& x, const Operands<V>& operands, int64_t offset,
                                                 const OutputStep (&steps)[K]) const {
    Values<T, V> z = argument(input(x), operands, steps);
    uint32_t open = 0;
    with_act([&](auto kind) {
      constexpr ActivationKind kKind = decltype(kind)::value;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if constexpr (is_gated(kKind)) open |= uint32_t(is_open(kKind, z.value[e])) << e;
        z.value[e] = activate(kKind, z.value[e], parameter<kKind>(steps[e % K]));
      }
    });
    if (e_.gate != nullptr) store_gates<V>(offset, open);
    drop(z, offset);
    return from_compute(z);
  }

  // The gradient of z. values: pre_act(x). add_term(e, term): with prelu, of the gradient of element e's slope.
  template <int V, class Step, int K, class AddTerm>
  __device__ __forceinline__ Vector<T, V> argument_gradient(const Vector<T, V>& dy, const Values<T, V>& values,
                                                            const Operands<V>& operands, int64_t offset,
                                                            const Step (&steps)[K], AddTerm&& add_term) const {
    Values<T, V> gradients = to_compute(dy);
    drop(gradients, offset);
    if (e_.gate != nullptr) {
      // Not before: it waits for the load.
      const uint32_t open = V == 8 ? operands.gates : uint32_t(operands.gates) >> offset % 8;
#pragma unroll
      for (int e = 0; e < V; ++e)
        gradients.value[e] =
            gated_gradient(kLean ? ActivationKind::relu : e_.act, gradients.value[e], (open >> e) & 1u, e_.parameter);
    } else if (e_.act != ActivationKind::identity) {  // z may need the residual
      const Values<T, V> z = argument(values, operands, steps);
      with_act([&](auto kind) {
        constexpr ActivationKind kKind = decltype(kind)::value;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          if constexpr (is_weighted(kKind)) add_term(e, slope_gradient(gradients.value[e], z.value[e]));
          gradients.value[e] = gradient(kKind, gradients.value[e], z.value[e], parameter<kKind>(steps[e % K]));
        }
      });
    }
    return from_compute(gradients);
  }
  template <int V>
  __device__ __forceinline__ void store_residual_gradient(int64_t offset, const Vector<T, V>& gradient) const {
    if (e_.grad_residual != nullptr)
      store_streaming(reinterpret_cast<Vector<T, V>*>(e_.grad_residual + offset), gradient);
  }

  // From the gradient of pre_act(x) to that of x.
  template <int V>
  __device__ __forceinline__ Vector<T, V> through_input(Values<T, V> gradients, const Vector<T, V>& x) const {
    if (!kLean && e_.pre_act != ActivationKind::identity) {
      const Values<T, V> values = to_compute(x);
      with_unweighted_kind(e_.pre_act, [&](auto kind) {
#pragma unroll
        for (int e = 0; e < V; ++e)
          gradients.value[e] = gradient(decltype(kind)::value, gradients.value[e], values.value[e], e_.pre_parameter);
      });
    }
    return from_compute(gradients);
  }

  __device__ __forceinline__ OutputStep output_step(const ForwardStep<A>& step, int64_t c) const {
    if constexpr (kSloped) {
      return {step, slope(c)};
    } else {
      return step;
    }
  }
  __device__ __forceinline__ SumStep sum_step(const Normalisation<A>& n, int64_t c, const ChannelValues& weight,
                                              bool) const {
    return {output_step(forward_step<T>(n, c, weight, e_.bias), c), inverse_unit(n.invstd)};
  }
  static __device__ __forceinline__ A scale(const SumStep& step) { return step.scale; }
  __device__ __forceinline__ InputStep input_step(const Normalisation<A>& n, const GradMeans<A>& means, int64_t c,
                                                  const ChannelValues& weight) const {
    return {backward_step<T>(n, means, c, weight), forward_step<T>(n, c, weight, e_.bias).shift, slope(c)};
  }

  static __device__ __forceinline__ Totals total(const GradSums<A>& sums, A slope) {
    if constexpr (kSloped) {
      return {sums, slope};
    } else {
      return sums;
    }
  }
  __device__ __forceinline__ void write_slope_gradient(const Totals& total, int64_t c) const {
    if constexpr (kSloped)
      if (e_.grad_slopes.data != nullptr) write_value<T>(e_.grad_slopes, c, total.slope);
  }

 private:
  __device__ __forceinline__ A slope(int64_t c) const {
    if constexpr (kSloped) {
      return read_value_or<T>(e_.slopes, e_.one_slope ? 0 : c, A(0));
    } else {
      return A(0);
    }
  }
  // f(constant) with the kind of act.
  template <class F>
  __device__ __forceinline__ void with_act(F&& f) const {
    if constexpr (kLean) {
      if (e_.act != ActivationKind::identity) f(std::integral_constant<ActivationKind, ActivationKind::relu>{});
    } else if constexpr (kSloped) {
      with_kind(e_.act, f);
    } else {
      with_unweighted_kind(e_.act, f);
    }
  }
  template <ActivationKind kKind, class Step>
  __device__ __forceinline__ A parameter(const Step& step) const {
    if constexpr (is_weighted(kKind)) {
      return step.act_slope;
    } else {
      return e_.parameter;
    }
  }

  template <int V, class Step, int K>
  __device__ __forceinline__ Values<T, V> argument(Values<T, V> values, const Operands<V>& operands,
                                                   const Step (&steps)[K]) const {
#pragma unroll
    for (int e = 0; e < V; ++e) values.value[e] = affine(values.value[e], steps[e % K]);
    if (e_.residual != nullptr) {
      const Values<T, V> residual = to_compute(operands.residual);
#pragma unroll
      for (int e = 0; e < V; ++e) values.value[e] += residual.value[e];
    }
    return values;
  }

  template <int V>
  __device__ __forceinline__ void drop(Values<T, V>& values, int64_t offset) const {
    if (kLean || !e_.drops) return;
    const uint32_t keep = keep_bits_of_vector<V>(offset, state_, e_.threshold);
#pragma unroll
    for (int e = 0; e < V; ++e) values.value[e] = (keep >> e) & 1u ? values.value[e] * e_.keep_scale : A(0);
  }

  template <int V>
  __device__ __forceinline__ void store_gates(int64_t offset, uint32_t open) const {
    static_assert(V == 8 || V == 4 || V == 1, "a byte is of one vector, of two, or shared");
    if constexpr (V == 8) {
      store(e_.gate + offset / 8, static_cast<unsigned char>(open));
    } else if (V == 1 || e_.shares_gates) {
      if (open != 0) atomicOr(reinterpret_cast<unsigned*>(e_.gate) + offset / 32, open << offset % 32);
    } else {
      const int lane = int(threadIdx.x) % 32;
      const uint32_t bits = open << offset % 8;
      const uint32_t byte = bits | __shfl_xor_sync(3u << (lane & ~1), bits, 1);
      if (lane % 2 == 0) store(e_.gate + offset / 8, static_cast<unsigned char>(byte));
    }
  }

  E e_;
  RandomState state_ = {};
};

// The totals of K channels, to which V elements belong in turn.
template <class S, class A, int V, int K>
__device__ __forceinline__ void totals_of(const GradSums<A> (&sums)[V], const A (&slope_sums)[K],
                                          typename S::Totals (&r)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    GradSums<A> merged = {};
#pragma unroll
    for (int e = k; e < V; e += K) merged = merge(merged, sums[e]);
    r[k] = S::total(merged, slope_sums[k]);
  }
}

}  // namespace fastreg
