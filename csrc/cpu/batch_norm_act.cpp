// Batch norm with what stands next to it, on the CPU: the passes of batch norm, with the fused kernels. The draws are
// made first, a bit each, so that each is made once wherever a channel's elements lie.
#include "../batch_norm_act_operators.h"
#include "batch_norm_passes.h"
#include "dropout.h"
#include "kept_bits.h"

namespace fastreg::cpu {
namespace {

using CpuFusion = Fusion<RandomState>;

// The Work of batch_norm_passes.h. Whole tensors, or null where there is none.
template <class T>
struct FusedWork {
  using C = compute_t<T>;

  const Partition& p;
  const T *dy, *x;
  T *y, *dx, *dresidual;
  KeptBits kept;
  Epilogue<T> epilogue;

  double start(int64_t c) const {
    const C first = to_compute(x[p.layout.channels_last ? c : c * p.layout.size]);
    return double(activate(epilogue.pre_act.kind, first, C(epilogue.pre_act.parameter)));
  }

  void moments(const Section& s, const double* centre, double* sums) const {
    if (epilogue.pre_act.kind == ActivationKind::identity) return gather_moments(s, x, centre, sums);
    kernels<T>().moments_act(s, x, epilogue.pre_act, centre, sums);
  }
  void normalize(const Section& s, const ForwardCoefficients<C>& f) const {
    kernels<T>().normalize_act(s, x, y, f, epilogue);
  }
  void grad_sums(const Section& s, const ForwardCoefficients<C>& f, const double* mean, double* sums) const {
    kernels<T>().grad_sums_act(s, dy, x, f, mean, epilogue, sums);
  }
  void grad_input(const Section& s, const ForwardCoefficients<C>& f, const BackwardCoefficients<C>& b) const {
    if (epilogue.dz && b.mean_dy && epilogue.pre_act.kind == ActivationKind::identity) {
      input_gradient(s, epilogue.dz, x, dx, b);
    } else if (epilogue.dz) {
      Epilogue<T> rest{};
      rest.pre_act = epilogue.pre_act;
      kernels<T>().grad_input_act(s, epilogue.dz, x, dx, nullptr, f, b, rest);
    } else if (dx || dresidual) {
      kernels<T>().grad_input_act(s, dy, x, dx, dresidual, f, b, epilogue);
    }
  }
};

auto fused_work(const Tensor& dy, const Tensor& x, const Tensor& y, const CpuFusion& fusion, const Tensor& dx,
                const Tensor& dresidual) {
  return [=](auto tag, const Partition& p) {
    using T = decltype(tag);
    using C = compute_t<T>;
    KeptBits kept = fusion.drops ? KeptBits(x.numel(), fusion.drop) : KeptBits();
    // dz is computed once where its rounding to T is none and a result can hold it until dx takes its place.
    T* dz = nullptr;
    if (std::is_same_v<T, C> && p.sums_first && dx.defined()) dz = data<T>(dresidual.defined() ? dresidual : dx);
    const Epilogue<T> epilogue = {fusion.pre_act,
                                  fusion.act,
                                  data_or_null<const T>(fusion.residual),
                                  data_or_null<uint8_t>(fusion.gate),
                                  fusion.gate.defined() ? fusion.gate.numel() : 0,
                                  kept.words(),
                                  C(fusion.drop.transform.scale),
                                  dz};
    return FusedWork<T>{p,
                        data_or_null<const T>(dy),
                        const_data<T>(x),
                        data_or_null<T>(y),
                        data_or_null<T>(dx),
                        data_or_null<T>(dresidual),
                        std::move(kept),
                        epilogue};
  };
}

void prepare(const CpuFusion& fusion) {
  if (fusion.gate.defined()) std::memset(fusion.gate.data_ptr(), 0, fusion.gate.nbytes());
}

void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
           const Statistics& statistics, const Running& running, const CpuFusion& fusion) {
  prepare(fusion);
  train_in_passes(layout, x, affine, statistics, running, fused_work({}, x, y, fusion, {}, {}));
}

void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
          const Statistics& statistics, const CpuFusion& fusion) {
  prepare(fusion);
  eval_in_passes(layout, x, affine, statistics, fused_work({}, x, y, fusion, {}, {}));
}

void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Affine& affine,
              const Statistics& statistics, const CpuFusion& fusion, const FusedGradients& gradients) {
  backward_in_passes(layout, x, affine, statistics, gradients,
                     fused_work(dy, x, {}, fusion, gradients.input, gradients.residual));
}

struct BatchNormActBackend {
  using Dropout = DropoutBackend;
  static constexpr auto train = cpu::train;
  static constexpr auto eval = cpu::eval;
  static constexpr auto backward = cpu::backward;
};

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) {
  fastreg::BatchNormActOperators<fastreg::cpu::BatchNormActBackend>::register_in(m);
}
