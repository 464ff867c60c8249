// Batch norm on the CPU: the division of the work. How a channel's elements are divided depends on the shape alone,
// never on the number of threads, so neither does the result.
#include <ATen/Parallel.h>

#include <vector>

#include "../batch_norm_operators.h"
#include "../kernels/moments.h"
#include "kernels.h"

namespace fastreg::cpu {
namespace {

using at::Tensor;

constexpr int64_t kChunk = 32768;    // elements that are worth another task
constexpr int64_t kFewChannels = 8;  // so few channels are also divided within
constexpr int64_t kMostChunks = 256;

// How the elements are cut into tasks. In the planes layout a chunk is a range of one channel's elements, in the rows
// layout a range of rows.
struct Partition {
  ChannelLayout layout;
  int64_t chunk, chunks;

  explicit Partition(const ChannelLayout& l) : layout(l) {
    const int64_t n = l.per_channel();
    if (l.channels_last) {
      chunk = std::max({int64_t(64), kChunk / l.channels, n / kMostChunks});
    } else {
      chunk = l.channels < kFewChannels ? kChunk : n;
    }
    chunks = (n + chunk - 1) / chunk;
  }

  Planes planes() const { return {layout.channels, layout.size}; }
  int64_t begin(int64_t k) const { return k * chunk; }
  int64_t end(int64_t k) const { return std::min((k + 1) * chunk, layout.per_channel()); }

  // f(first, last) over tasks; in the planes layout a task is a chunk of a channel, numbered channel-major.
  template <class F>
  void for_each(F&& f) const {
    const int64_t tasks = layout.channels_last ? chunks : chunks * layout.channels;
    const int64_t elements = layout.per_channel() * layout.channels;
    at::parallel_for(0, tasks, std::max<int64_t>(1, kChunk * tasks / elements), f);
  }
};

// Two sums per channel. Channel c's of chunk k stand at at(k, c) and at(k, c) + pitch.
struct Sums {
  std::vector<double> values;
  int64_t chunks, channels;
  bool channels_last;

  explicit Sums(const Partition& p)
      : values(size_t(2 * p.chunks * p.layout.channels)),
        chunks(p.chunks),
        channels(p.layout.channels),
        channels_last(p.layout.channels_last) {}

  double* at(int64_t chunk, int64_t channel) {
    return values.data() + (channels_last ? 2 * chunk * channels + channel : 2 * (channel * chunks + chunk));
  }
  // The channel's totals, added up in the order of the chunks.
  std::pair<double, double> total(int64_t channel) {
    const int64_t pitch = channels_last ? channels : 1;
    double a = 0, b = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      const double* pair = at(k, channel);
      a += pair[0];
      b += pair[pitch];
    }
    return {a, b};
  }
};

template <class T>
void gather_moments(const Partition& p, const T* x, const double* centre, Sums& sums, int64_t task) {
  if (p.layout.channels_last) {
    kernels<T>().moments_rows(x, p.layout.channels, p.begin(task), p.end(task), centre, sums.at(task, 0));
  } else {
    const int64_t c = task / p.chunks, k = task % p.chunks;
    kernels<T>().moments_planes(x, p.planes(), c, p.begin(k), p.end(k), centre[c], sums.at(k, c));
  }
}

template <class T>
void normalize(const Partition& p, const T* x, T* y, const ForwardCoefficients<compute_t<T>>& f, int64_t task) {
  if (p.layout.channels_last) {
    kernels<T>().normalize_rows(x, y, p.layout.channels, p.begin(task), p.end(task), f);
  } else {
    const int64_t c = task / p.chunks, k = task % p.chunks;
    kernels<T>().normalize_planes(x, y, p.planes(), c, p.begin(k), p.end(k), f);
  }
}

template <class T>
void gather_grad_sums(const Partition& p, const T* dy, const T* x, const double* mean, Sums& sums, int64_t task) {
  if (p.layout.channels_last) {
    kernels<T>().grad_sums_rows(dy, x, p.layout.channels, p.begin(task), p.end(task), mean, sums.at(task, 0));
  } else {
    const int64_t c = task / p.chunks, k = task % p.chunks;
    kernels<T>().grad_sums_planes(dy, x, p.planes(), c, p.begin(k), p.end(k), mean[c], sums.at(k, c));
  }
}

template <class T>
void input_gradient(const Partition& p, const T* dy, const T* x, T* dx, const BackwardCoefficients<compute_t<T>>& f,
                    int64_t task) {
  if (p.layout.channels_last) {
    kernels<T>().grad_input_rows(dy, x, dx, p.layout.channels, p.begin(task), p.end(task), f);
  } else {
    const int64_t c = task / p.chunks, k = task % p.chunks;
    kernels<T>().grad_input_planes(dy, x, dx, p.planes(), c, p.begin(k), p.end(k), f);
  }
}

// A parameter or statistic as doubles.
std::vector<double> values_of(const Tensor& t, int64_t channels, double otherwise) {
  std::vector<double> values(size_t(channels), otherwise);
  if (t.defined())
    dispatch_floating(t.scalar_type(), "batch_norm", [&](auto tag) {
      using P = decltype(tag);
      const P* p = const_data<P>(t);
      for (int64_t c = 0; c < channels; ++c) values[size_t(c)] = double(to_compute(p[c * t.stride(0)]));
    });
  return values;
}

// t[c] = f(c)
template <class F>
void write_values(const Tensor& t, F&& f) {
  dispatch_floating(t.scalar_type(), "batch_norm", [&](auto tag) {
    using P = decltype(tag);
    P* p = data<P>(t);
    for (int64_t c = 0; c < t.size(0); ++c) p[c * t.stride(0)] = from_compute<P>(compute_t<P>(f(size_t(c))));
  });
}

void update_running(const Tensor& running, const std::vector<double>& value, double factor) {
  if (!running.defined()) return;
  const std::vector<double> old = values_of(running, running.size(0), 0.0);
  write_values(running, [&](size_t c) { return updated_running(old[c], value[c], factor); });
}

// Per-channel coefficients as `count` rows of one array.
template <class C>
struct CoefficientRows {
  std::vector<C> values;
  int64_t channels;

  CoefficientRows(int count, int64_t channels) : values(size_t(count * channels)), channels(channels) {}
  C* row(int i) { return values.data() + i * channels; }
};

template <class C>
ForwardCoefficients<C> forward_coefficients(CoefficientRows<C>& rows) {
  return {rows.row(0), rows.row(1), rows.row(2), rows.row(3)};
}

// What is known of the mean after the first look at a channel: any of its values does for a start.
template <class T>
std::vector<double> first_values(const T* x, const ChannelLayout& l) {
  std::vector<double> centre(size_t(l.channels));
  for (int64_t c = 0; c < l.channels; ++c) centre[size_t(c)] = double(to_compute(x[l.channels_last ? c : c * l.size]));
  return centre;
}

void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
           const Statistics& statistics, const Running& running) {
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const std::vector<double> w = values_of(affine.weight, channels, 1.0), b = values_of(affine.bias, channels, 0.0);
  std::vector<double> mean(w.size()), unbiased_variance(w.size());

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    Sums sums(partition);
    std::vector<double> centre = first_values(from, layout);
    CoefficientRows<C> rows(4, channels);
    C* const saved = data<C>(statistics.stats);

    const auto gather = [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) gather_moments(partition, from, centre.data(), sums, task);
    };
    const auto finish_channel = [&](int64_t c) {
      const auto [sum, sum_of_squares] = sums.total(c);
      const Moments<double> m = moments_from_sums(n, sum, sum_of_squares);
      const double invstd = inverse_deviation(m.m2 / n, statistics.eps);
      rows.row(0)[c] = saved[c] = C(centre[size_t(c)]);
      rows.row(1)[c] = saved[channels + c] = C(m.mean + (centre[size_t(c)] - double(saved[c])));
      saved[2 * channels + c] = C(invstd);
      rows.row(2)[c] = C(invstd * w[size_t(c)]);
      rows.row(3)[c] = C(b[size_t(c)]);
      mean[size_t(c)] = centre[size_t(c)] + m.mean;
      unbiased_variance[size_t(c)] = m.m2 / (n - 1);
    };
    const auto write = [&](int64_t first, int64_t last) {
      // Backwards: what was read last is still in the cache.
      for (int64_t task = last; task-- > first;) normalize(partition, from, to, forward_coefficients(rows), task);
    };
    // Double sums of doubles have no digits to spare: a second look, centred on the mean, restores those that the
    // first one lost.
    constexpr bool kTwoLooks = std::is_same_v<T, double>;
    const auto recentre = [&](int64_t c) { centre[size_t(c)] += sums.total(c).first / n; };

    if (!layout.channels_last && partition.chunks == 1) {
      // A task is a whole channel, read from memory once: it is in the cache when it is normalised.
      partition.for_each([&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
          gather(c, c + 1);
          if (kTwoLooks) recentre(c), gather(c, c + 1);
          finish_channel(c);
          write(c, c + 1);
        }
      });
    } else {
      partition.for_each(gather);
      if (kTwoLooks) {
        for (int64_t c = 0; c < channels; ++c) recentre(c);
        partition.for_each(gather);
      }
      for (int64_t c = 0; c < channels; ++c) finish_channel(c);
      partition.for_each(write);
    }
  });

  int64_t batches = 0;
  if (running.num_batches_tracked.defined()) batches = ++*running.num_batches_tracked.mutable_data_ptr<int64_t>();
  const double factor = running.momentum ? *running.momentum : 1.0 / double(batches);
  update_running(running.mean, mean, factor);
  update_running(running.var, unbiased_variance, factor);
}

void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
          const Statistics& statistics) {
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  const std::vector<double> w = values_of(affine.weight, channels, 1.0), b = values_of(affine.bias, channels, 0.0),
                            mean = values_of(statistics.running_mean, channels, 0.0),
                            variance = values_of(statistics.running_var, channels, 1.0);

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    CoefficientRows<C> rows(4, channels);
    for (int64_t c = 0; c < channels; ++c) {
      rows.row(0)[c] = C(mean[size_t(c)]);
      rows.row(1)[c] = C(0);
      rows.row(2)[c] = C(inverse_deviation(variance[size_t(c)], statistics.eps) * w[size_t(c)]);
      rows.row(3)[c] = C(b[size_t(c)]);
    }
    partition.for_each([&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task)
        normalize(partition, const_data<T>(x), data<T>(y), forward_coefficients(rows), task);
    });
  });
}

void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Tensor& weight,
              const Statistics& statistics, const Gradients& gradients) {
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const bool training = statistics.stats.defined();
  const bool need_sums = training || gradients.weight.defined() || gradients.bias.defined();
  std::vector<double> centre, delta, invstd;
  if (training) {
    dispatch_floating(statistics.stats.scalar_type(), "batch_norm", [&](auto tag) {
      const auto* row = const_data<decltype(tag)>(statistics.stats);
      for (std::vector<double>* values : {&centre, &delta, &invstd}) {
        values->resize(size_t(channels));
        for (double& value : *values) value = double(to_compute(*row++));
      }
    });
  } else {
    centre = values_of(statistics.running_mean, channels, 0.0);
    delta.assign(size_t(channels), 0.0);
    invstd = values_of(statistics.running_var, channels, 1.0);
    for (double& v : invstd) v = inverse_deviation(v, statistics.eps);
  }
  const std::vector<double> w = values_of(weight, channels, 1.0);
  std::vector<double> sum_dy(w.size()), sum_dy_x(w.size());

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const T *from = const_data<T>(x), *grad = const_data<T>(dy);
    T* const to = gradients.input.defined() ? data<T>(gradients.input) : nullptr;
    Sums sums(partition);
    CoefficientRows<C> rows(5, channels);

    const auto gather = [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task)
        gather_grad_sums(partition, grad, from, centre.data(), sums, task);
    };
    const auto finish_channel = [&](int64_t c) {
      const size_t i = size_t(c);
      if (need_sums) {
        const auto [a, b] = sums.total(c);
        sum_dy[i] = a;
        sum_dy_x[i] = b - delta[i] * a;
      }
      rows.row(0)[c] = training ? C(centre[i]) : C(0);
      rows.row(1)[c] = training ? C(delta[i]) : C(0);
      rows.row(2)[c] = C(invstd[i] * w[i]);
      rows.row(3)[c] = training ? C(sum_dy[i] / n) : C(0);
      rows.row(4)[c] = training ? C(sum_dy_x[i] / n * invstd[i] * invstd[i]) : C(0);
    };
    const auto write = [&](int64_t first, int64_t last) {
      for (int64_t task = last; task-- > first;) {
        if (training) {
          const BackwardCoefficients<C> f = {rows.row(0), rows.row(1), rows.row(2), rows.row(3), rows.row(4)};
          input_gradient(partition, grad, from, to, f, task);
        } else {
          // The statistics are constants: dx = dy * scale, whatever x is.
          const ForwardCoefficients<C> f = {rows.row(0), rows.row(1), rows.row(2), rows.row(3)};
          normalize(partition, grad, to, f, task);
        }
      }
    };

    if (!layout.channels_last && partition.chunks == 1) {
      partition.for_each([&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
          if (need_sums) gather(c, c + 1);
          finish_channel(c);
          if (to) write(c, c + 1);
        }
      });
    } else {
      if (need_sums) partition.for_each(gather);
      for (int64_t c = 0; c < channels; ++c) finish_channel(c);
      if (to) partition.for_each(write);
    }
  });

  if (gradients.weight.defined()) write_values(gradients.weight, [&](size_t c) { return sum_dy_x[c] * invstd[c]; });
  if (gradients.bias.defined()) write_values(gradients.bias, [&](size_t c) { return sum_dy[c]; });
}

struct BatchNormBackend {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static constexpr auto train = cpu::train;
  static constexpr auto eval = cpu::eval;
  static constexpr auto backward = cpu::backward;
};

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) { fastreg::BatchNormOperators<fastreg::cpu::BatchNormBackend>::register_in(m); }
