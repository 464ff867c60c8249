// Batch norm on the CPU.
#include "cpu/batch_norm_passes.h"
#include "kernels/batch_norm/merge.h"
#include "operators/batch_norm_sync.h"

namespace fastreg::cpu {
namespace {

// Whole tensors; y: null where there is none. In backward y is dx.
template <class T>
struct PlainWork {
  using C = compute_t<T>;

  const Partition& p;
  const T *dy, *x;
  T* y;
  const Coefficients<C> zeros{1, p.layout.channels};

  double value(int64_t i) const { return double(to_compute(x[i])); }

  void moments(const Section& s, const Look& look, const double* centre, double* sums) const {
    kernels<T>().moments(s, x, centre, sums, look.how);
  }

  void normalize(const Section& s, const ForwardCoefficients<C>& f) const {
    if (y != nullptr) kernels<T>().normalize(s, x, y, f);
  }

  void grad_sums(const Section& s, const Look& look, const ForwardCoefficients<C>&, const double* mean,
                 double* sums) const {
    kernels<T>().grad_sums(s, dy, x, mean, sums, look.how);
  }

  void grad_input(const Section& s, const ForwardCoefficients<C>&, const BackwardCoefficients<C>& f) const {
    if (y == nullptr) return;
    if (f.mean_dy == nullptr) {
      kernels<T>().normalize(s, dy, y, {zeros[0], zeros[0], f.scale, zeros[0]});
    } else {
      kernels<T>().grad_input(s, dy, x, y, f);
    }
  }
};

// The Work of a call; undefined tensors become null.
auto plain_work(const Tensor& dy, const Tensor& x, const Tensor& y) {
  return [=](auto tag, const Partition& p) {
    using T = decltype(tag);
    return PlainWork<T>{p, data_or_null<const T>(dy), const_data<T>(x), data_or_null<T>(y)};
  };
}

void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
           const Statistics& statistics, const Running& running) {
  train_in_passes(layout, x, affine, statistics, running, plain_work({}, x, y));
}

void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
          const Statistics& statistics) {
  eval_in_passes(layout, x, affine, statistics, plain_work({}, x, y));
}

void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
              const Statistics& statistics, const Gradients& gradients) {
  backward_in_passes(layout, x, {weight, {}}, statistics, gradients, plain_work(dy, x, gradients.input));
}

void merge(const Tensor& moments, const Statistics& statistics, const Tensor& count, const Running& running) {
  const int64_t channels = statistics.stats.size(1);
  const ChannelRows<double> rows(2, channels);
  double *const mean = rows[0], *const variance = rows[1];
  double total = 0;
  dispatch_floating(moments.scalar_type(), "batch_norm", [&](auto tag) {
    using C = decltype(tag);
    if constexpr (std::is_same_v<C, compute_t<C>>) {  // float or double
      const C* const values = const_data<C>(moments);
      C* const stats = data<C>(statistics.stats);
      for (int64_t c = 0; c < channels; ++c) {
        const MergedStatistics m = merged_statistics<C>(moments.size(0), channels, c, statistics.eps,
                                                        [&](int64_t i) { return double(values[i]); });
        stats[c] = C(m.centre);
        stats[channels + c] = C(m.delta);
        stats[2 * channels + c] = C(m.invstd);
        mean[c] = m.mean;
        variance[c] = m.variance;
        total = m.count;
      }
    }
  });
  count.fill_(total);
  double factor = running.momentum.value_or(0.0);
  if (!running.momentum) factor = 1.0 / double(running.num_batches_tracked.item<int64_t>());
  if (total >= 1) update_running(running.mean, mean, factor);
  if (total >= 2) update_running(running.var, variance, factor);
}

struct BatchNormBackend {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static constexpr auto train = cpu::train;
  static constexpr auto eval = cpu::eval;
  static constexpr auto backward = cpu::backward;
  static constexpr auto merge = cpu::merge;
};

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) {
  fastreg::BatchNormOperators<fastreg::cpu::BatchNormBackend>::register_in(m);
  fastreg::BatchNormSyncOperators<fastreg::cpu::BatchNormBackend>::register_in(m);
}
