// Batch norm on the CPU: torch's side of it, and the division of the work. How a channel's elements are divided
// depends on the shape alone, never on the number of threads, so neither does the result.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "../dispatch.h"
#include "../kernels/moments.h"
#include "../layout.h"
#include "kernels.h"

namespace fastreg::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

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
      chunk = std::max({int64_t(64), kChunk / std::max<int64_t>(l.channels, 1), n / kMostChunks});
    } else {
      chunk = l.channels < kFewChannels ? kChunk : std::max<int64_t>(n, 1);
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
    const int64_t grain = tasks == 0 ? 1 : std::max<int64_t>(1, kChunk * tasks / std::max<int64_t>(elements, 1));
    at::parallel_for(0, tasks, grain, f);
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

bool defined(const OptionalTensor& t) { return t && t->defined(); }

// A parameter or statistic as doubles.
std::vector<double> values_of(const OptionalTensor& t, int64_t channels, double otherwise) {
  std::vector<double> values(size_t(channels), otherwise);
  if (defined(t))
    dispatch_floating(t->scalar_type(), "batch_norm", [&](auto tag) {
      using P = decltype(tag);
      const P* p = const_data<P>(*t);
      for (int64_t c = 0; c < channels; ++c) values[size_t(c)] = double(to_compute(p[c * t->stride(0)]));
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

void update_running(const OptionalTensor& running, const std::vector<double>& value, double factor) {
  if (!defined(running)) return;
  const std::vector<double> old = values_of(running, running->size(0), 0.0);
  write_values(*running, [&](size_t c) { return updated_running(old[c], value[c], factor); });
  mark_written(*running);
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
  std::vector<double> centre(size_t(l.channels), 0.0);
  if (l.per_channel() > 0)
    for (int64_t c = 0; c < l.channels; ++c)
      centre[size_t(c)] = double(to_compute(x[l.channels_last ? c : c * l.size]));
  return centre;
}

std::tuple<Tensor, Tensor> batch_norm_train(const Tensor& input, const OptionalTensor& weight,
                                            const OptionalTensor& bias, const OptionalTensor& running_mean,
                                            const OptionalTensor& running_var,
                                            const OptionalTensor& num_batches_tracked, std::optional<double> momentum,
                                            double eps) {
  constexpr const char* op = "batch_norm";
  check_batch_norm_input(op, input);
  check_per_channel(op, "weight", weight, input);
  check_per_channel(op, "bias", bias, input);
  check_written(op, "running_mean", running_mean, input);
  check_written(op, "running_var", running_var, input);
  const double factor = check_momentum(op, momentum, num_batches_tracked, input)
                            ? *momentum
                            : 1.0 / double(num_batches_tracked->item<int64_t>() + 1);

  const Tensor x = with_channel_layout(input);
  const ChannelLayout layout = *channel_layout(x);
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  Tensor y = at::empty_like(x);
  Tensor stats = at::empty({3, channels}, x.options().dtype(compute_dtype(x.scalar_type())));
  const std::vector<double> w = values_of(weight, channels, 1.0), b = values_of(bias, channels, 0.0);
  std::vector<double> mean(w.size()), unbiased_variance(w.size());

  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    Sums sums(partition);
    std::vector<double> centre = first_values(from, layout);
    CoefficientRows<C> rows(4, channels);
    C* const saved = data<C>(stats);

    const auto gather = [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) gather_moments(partition, from, centre.data(), sums, task);
    };
    const auto finish_channel = [&](int64_t c) {
      const auto [sum, sum_of_squares] = sums.total(c);
      const Moments<double> m = moments_from_sums(n, sum, sum_of_squares);
      const double invstd = inverse_deviation(m.m2 / n, eps);
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

  if (layout.per_channel() > 0) {
    update_running(running_mean, mean, factor);
    update_running(running_var, unbiased_variance, factor);
  }
  if (defined(num_batches_tracked)) {
    ++*num_batches_tracked->mutable_data_ptr<int64_t>();
    mark_written(*num_batches_tracked);
  }
  return {in_order_of(y, input), stats};
}

Tensor batch_norm_eval(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                       const Tensor& running_mean, const Tensor& running_var, double eps) {
  constexpr const char* op = "batch_norm";
  check_batch_norm_input(op, input);
  check_per_channel(op, "weight", weight, input);
  check_per_channel(op, "bias", bias, input);
  check_per_channel(op, "running_mean", running_mean, input);
  check_per_channel(op, "running_var", running_var, input);

  const Tensor x = with_channel_layout(input);
  const ChannelLayout layout = *channel_layout(x);
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  Tensor y = at::empty_like(x);
  const std::vector<double> w = values_of(weight, channels, 1.0), b = values_of(bias, channels, 0.0),
                            mean = values_of(running_mean, channels, 0.0),
                            variance = values_of(running_var, channels, 1.0);

  dispatch_floating(x.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    CoefficientRows<C> rows(4, channels);
    for (int64_t c = 0; c < channels; ++c) {
      rows.row(0)[c] = C(mean[size_t(c)]);
      rows.row(1)[c] = C(0);
      rows.row(2)[c] = C(inverse_deviation(variance[size_t(c)], eps) * w[size_t(c)]);
      rows.row(3)[c] = C(b[size_t(c)]);
    }
    partition.for_each([&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task)
        normalize(partition, const_data<T>(x), data<T>(y), forward_coefficients(rows), task);
    });
  });
  return in_order_of(y, input);
}

// What the backward pass knows of a channel: the statistics that the forward pass normalised with.
struct ChannelStatistics {
  std::vector<double> centre, delta, invstd;
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const OptionalTensor& weight,
                                                       const ChannelStatistics& statistics, bool training,
                                                       std::array<bool, 3> output_mask) {
  const Tensor x = with_channel_layout(input);
  const Tensor dy = with_layout_of(grad_output, x);
  const ChannelLayout layout = *channel_layout(x);
  const Partition partition(layout);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const bool need_sums = training || output_mask[1] || output_mask[2];
  Tensor dx = output_mask[0] ? at::empty_like(x) : at::empty({0}, x.options());
  const std::vector<double> w = values_of(weight, channels, 1.0);
  std::vector<double> sum_dy(w.size()), sum_dy_x(w.size());

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const T *from = const_data<T>(x), *grad = const_data<T>(dy);
    Sums sums(partition);
    CoefficientRows<C> rows(5, channels);

    const auto gather = [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task)
        gather_grad_sums(partition, grad, from, statistics.centre.data(), sums, task);
    };
    const auto finish_channel = [&](int64_t c) {
      const size_t i = size_t(c);
      const double invstd = statistics.invstd[i];
      if (need_sums) {
        const auto [a, b] = sums.total(c);
        sum_dy[i] = a;
        sum_dy_x[i] = b - statistics.delta[i] * a;
      }
      rows.row(0)[c] = training ? C(statistics.centre[i]) : C(0);
      rows.row(1)[c] = training ? C(statistics.delta[i]) : C(0);
      rows.row(2)[c] = C(invstd * w[i]);
      rows.row(3)[c] = training ? C(sum_dy[i] / n) : C(0);
      rows.row(4)[c] = training ? C(sum_dy_x[i] / n * invstd * invstd) : C(0);
    };
    const auto write = [&](int64_t first, int64_t last) {
      for (int64_t task = last; task-- > first;) {
        if (training) {
          const BackwardCoefficients<C> f = {rows.row(0), rows.row(1), rows.row(2), rows.row(3), rows.row(4)};
          input_gradient(partition, grad, from, data<T>(dx), f, task);
        } else {
          // The statistics are constants: dx = dy * scale, whatever x is.
          const ForwardCoefficients<C> f = {rows.row(0), rows.row(1), rows.row(2), rows.row(3)};
          normalize(partition, grad, data<T>(dx), f, task);
        }
      }
    };

    if (!layout.channels_last && partition.chunks == 1) {
      partition.for_each([&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
          if (need_sums) gather(c, c + 1);
          finish_channel(c);
          if (output_mask[0]) write(c, c + 1);
        }
      });
    } else {
      if (need_sums) partition.for_each(gather);
      for (int64_t c = 0; c < channels; ++c) finish_channel(c);
      if (output_mask[0]) partition.for_each(write);
    }
  });

  const auto parameter_gradient = [&](bool wanted, auto&& value) {
    if (!wanted) return at::empty({0}, x.options());
    const auto dtype = defined(weight) ? weight->scalar_type() : compute_dtype(x.scalar_type());
    Tensor gradient = at::empty({channels}, x.options().dtype(dtype));
    write_values(gradient, value);
    return gradient;
  };
  return {output_mask[0] ? in_order_of(dx, input) : dx,
          parameter_gradient(output_mask[1], [&](size_t c) { return sum_dy_x[c] * statistics.invstd[c]; }),
          parameter_gradient(output_mask[2], [&](size_t c) { return sum_dy[c]; })};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_backward(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& weight, const Tensor& stats,
                                                             std::array<bool, 3> output_mask) {
  constexpr const char* op = "batch_norm";
  check_batch_norm_input(op, input);
  check_grad_output(op, grad_output, input);
  check_per_channel(op, "weight", weight, input);
  check_stats(stats, input, compute_dtype(input.scalar_type()));
  const int64_t channels = input.size(1);
  return batch_norm_backward(
      grad_output, input, weight,
      {values_of(stats.select(0, 0), channels, 0.0), values_of(stats.select(0, 1), channels, 0.0),
       values_of(stats.select(0, 2), channels, 1.0)},
      /*training=*/true, output_mask);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_eval_backward(const Tensor& grad_output, const Tensor& input,
                                                            const OptionalTensor& weight, const Tensor& running_mean,
                                                            const Tensor& running_var, double eps,
                                                            std::array<bool, 3> output_mask) {
  constexpr const char* op = "batch_norm";
  check_batch_norm_input(op, input);
  check_grad_output(op, grad_output, input);
  check_per_channel(op, "weight", weight, input);
  check_per_channel(op, "running_mean", running_mean, input);
  check_per_channel(op, "running_var", running_var, input);
  const int64_t channels = input.size(1);
  std::vector<double> invstd = values_of(running_var, channels, 1.0);
  for (double& v : invstd) v = inverse_deviation(v, eps);
  return batch_norm_backward(
      grad_output, input, weight,
      {values_of(running_mean, channels, 0.0), std::vector<double>(size_t(channels), 0.0), std::move(invstd)},
      /*training=*/false, output_mask);
}

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) {
  m.impl("batch_norm_train", TORCH_FN(fastreg::cpu::batch_norm_train));
  m.impl("batch_norm_eval", TORCH_FN(fastreg::cpu::batch_norm_eval));
  m.impl("batch_norm_train_backward", TORCH_FN(fastreg::cpu::batch_norm_train_backward));
  m.impl("batch_norm_eval_backward", TORCH_FN(fastreg::cpu::batch_norm_eval_backward));
}
