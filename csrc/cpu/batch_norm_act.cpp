// Batch norm with what stands next to it, on the CPU: the passes of batch norm, with the fused kernels. The draws are
// made first, a bit each, so that each is made once wherever a channel's elements lie.
#include <vector>

#include "cpu/batch_norm_passes.h"
#include "cpu/dropout.h"
#include "cpu/kept_bits.h"
#include "operators/batch_norm_act.h"

namespace fastreg::cpu {
namespace {

using CpuFusion = Fusion<RandomState>;

// The gradients of prelu's slopes: a sum of each channel's chunk, so that a channel is added up in one order whoever
// works on it.
class SlopeSums {
 public:
  void start(const Partition& p) {
    chunk_ = p.chunk;
    pitch_ = padded(p.layout.channels);
    sums_.assign(size_t(p.chunks * pitch_), 0.0);
  }

  // Where the section's are added, an array of all channels'.
  double* of(const Section& s) { return sums_.data() + s.begin / chunk_ * pitch_; }

  // To the gradient, of one slope per channel or of one for all.
  void write(const Tensor& gradient, int64_t channels) const {
    const bool shared = gradient.numel() == 1;
    std::vector<double> totals(shared ? 1 : size_t(channels));
    for (int64_t c = 0; c < channels; ++c)
      for (size_t at = size_t(c); at < sums_.size(); at += size_t(pitch_)) totals[shared ? 0 : size_t(c)] += sums_[at];
    for_each_value(gradient.view({-1}), [&](int64_t c, auto& element) { assign(element, totals[size_t(c)]); });
  }

 private:
  int64_t chunk_ = 1, pitch_ = 0;
  std::vector<double> sums_;
};

// prelu's slopes as kernels take them, one for each channel; null where there are none.
template <class C>
std::unique_ptr<Coefficients<C>> slopes_of(const Tensor& act_weight, int64_t channels) {
  if (!act_weight.defined()) return nullptr;
  auto slopes = std::make_unique<Coefficients<C>>(1, channels);
  C* const values = (*slopes)[0];
  for_each_value(act_weight.reshape({-1}), [&](int64_t c, const auto& element) { values[c] = C(to_compute(element)); });
  if (act_weight.numel() == 1) std::fill_n(values, channels, values[0]);
  slopes->repeat();
  return slopes;
}

// The Work of batch_norm_passes.h. Whole tensors, or null where there is none.
template <class T>
struct FusedWork {
  using C = compute_t<T>;

  const Partition& p;
  const T *dy, *x;
  T *y, *dx, *dresidual;
  KeptBits kept;
  std::unique_ptr<Coefficients<C>> slopes;
  SlopeSums* slope_sums;  // null: not wanted
  Epilogue<T> epilogue;

  double value(int64_t i) const {
    return double(activate(epilogue.pre_act.kind, to_compute(x[i]), C(epilogue.pre_act.parameter)));
  }

  void moments(const Section& s, const Look& look, const double* centre, double* sums) const {
    if (epilogue.pre_act.kind == ActivationKind::identity) return kernels<T>().moments(s, x, centre, sums, look.how);
    kernels<T>().moments_act(s, x, epilogue.pre_act, centre, sums, look.how);
  }
  void normalize(const Section& s, const ForwardCoefficients<C>& f) const {
    kernels<T>().normalize_act(s, x, y, f, epilogue);
  }
  void grad_sums(const Section& s, const Look& look, const ForwardCoefficients<C>& f, const double* mean,
                 double* sums) const {
    Epilogue<T> of_section = epilogue;
    if (slope_sums && !look.again) of_section.slope_sums = slope_sums->of(s);
    kernels<T>().grad_sums_act(s, dy, x, f, mean, of_section, sums, look.how);
  }
  void grad_input(const Section& s, const ForwardCoefficients<C>& f, const BackwardCoefficients<C>& b) const {
    if (epilogue.dz && b.mean_dy && epilogue.pre_act.kind == ActivationKind::identity) {
      kernels<T>().grad_input(s, epilogue.dz, x, dx, b);
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
                const Tensor& dresidual, SlopeSums* slope_sums = nullptr) {
  return [=](auto tag, const Partition& p) {
    using T = decltype(tag);
    using C = compute_t<T>;
    KeptBits kept = fusion.drops ? KeptBits(x.numel(), fusion.drop) : KeptBits();
    auto slopes = slopes_of<C>(fusion.act_weight, p.layout.channels);
    if (slope_sums) slope_sums->start(p);
    // dz is computed once where its rounding to T is none and a result can hold it until dx takes its place; where relu
    // is all that stands between it and dy, twice.
    T* dz = nullptr;
    const bool is_relus = fusion.act.kind == ActivationKind::relu && fusion.pre_act.kind == ActivationKind::identity &&
                          !fusion.residual.defined() && !fusion.drops;
    if (p.sums_first && dx.defined() && !is_relus) dz = data<T>(dresidual.defined() ? dresidual : dx);
    const Epilogue<T> epilogue = {fusion.pre_act,
                                  fusion.act,
                                  slopes ? (*slopes)[0] : nullptr,
                                  data_or_null<const T>(fusion.residual),
                                  data_or_null<uint8_t>(fusion.gate),
                                  fusion.gate.defined() ? fusion.gate.numel() : 0,
                                  kept.words(),
                                  C(fusion.drop.transform.scale),
                                  dz,
                                  nullptr};
    return FusedWork<T>{p,
                        data_or_null<const T>(dy),
                        const_data<T>(x),
                        data_or_null<T>(y),
                        data_or_null<T>(dx),
                        data_or_null<T>(dresidual),
                        std::move(kept),
                        std::move(slopes),
                        slope_sums,
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
  const bool slopes_too = gradients.act_weight.defined();
  SlopeSums slope_sums;
  backward_in_passes(
      layout, x, affine, statistics, gradients,
      fused_work(dy, x, {}, fusion, gradients.input, gradients.residual, slopes_too ? &slope_sums : nullptr),
      slopes_too);
  if (slopes_too) slope_sums.write(gradients.act_weight, layout.channels);
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
