// The passes of batch norm over memory: how the work is divided, and what is computed of channels between the passes.
// How a channel's elements are divided depends on the shape alone, never on the number of threads, so neither does the
// result.
//
// The passes themselves are a Work<T>'s, which knows the tensors of a call:
//   start(c)                      a value that the channel's are not far from
//   moments(section, centre, sums), normalize(section, forward)
//   grad_sums(section, forward, mean, sums), grad_input(section, forward, backward)
// do what the kernels of the same names do (kernels.h).
#pragma once

#include <ATen/Parallel.h>

#include <memory>

#include "../batch_norm_operators.h"
#include "../kernels/moments.h"
#include "kernels.h"

namespace fastreg::cpu {

using at::Tensor;

inline constexpr int64_t kChunk = 32768;    // elements that are worth another task
inline constexpr int64_t kFewChannels = 8;  // so few channels are also divided within
inline constexpr int64_t kMostChunks = 64;
// Planes of fewer elements lie too far apart for what the processor reads ahead. Channels next to each other are then
// worked through together, as many as stay in the second-level cache: their planes follow each other in memory.
inline constexpr int64_t kShortPlane = 512;
inline constexpr int64_t kGroupElements = 65536;
inline constexpr int64_t kMostInGroup = 32;

// How the elements are cut into tasks. In the planes layout a task is a group of channels, or of few channels a chunk
// of one's elements, numbered channel-major; in the rows layout it is a chunk of rows.
struct Partition {
  ChannelLayout layout;
  int64_t chunk, chunks;
  bool sums_first;    // whether elements are read for sums before they are read again
  int64_t group = 1;  // channels of a task
  int64_t block;      // elements of a channel that follow each other before the next one of the group has its turn

  Partition(const ChannelLayout& l, bool has_sums) : layout(l), sums_first(has_sums) {
    const int64_t n = l.per_channel();
    if (l.channels_last) {
      // Whole vectors, from whole cache lines on, whatever the number of channels.
      chunk = padded(std::max({int64_t(64), kChunk / l.channels, n / kMostChunks}));
    } else {
      chunk = l.channels < kFewChannels ? kChunk : n;
    }
    chunks = (n + chunk - 1) / chunk;
    block = n;
    if (task_is_group() && l.size < kShortPlane) {
      const int64_t most = std::min({kMostInGroup, kGroupElements / n, l.channels / 16});
      group = std::max<int64_t>(1, std::min(most, kTile / l.size));
      if (group > 1) block = std::max<int64_t>(1, kTile / padded(l.size)) * l.size;
    }
  }

  // Whether a task is whole channels: their elements can stay in the cache from one reading to the next.
  bool task_is_group() const { return !layout.channels_last && chunks == 1; }
  int64_t tasks() const {
    if (layout.channels_last) return chunks;
    return task_is_group() ? (layout.channels + group - 1) / group : chunks * layout.channels;
  }
  Planes planes() const { return {layout.channels, layout.size, sums_first && task_is_group(), group > 1}; }
  // Of tasks that are chunks.
  Section section(int64_t task) const {
    const int64_t k = layout.channels_last ? task : task % chunks, c = layout.channels_last ? 0 : task / chunks;
    return section(c, k * chunk, std::min((k + 1) * chunk, layout.per_channel()));
  }
  Section section(int64_t channel, int64_t begin, int64_t end) const {
    return {layout.channels_last, planes(), channel, begin, end};
  }

  // f(first, last) over ranges of tasks.
  template <class F>
  void for_each(F&& f) const {
    const int64_t elements = layout.per_channel() * layout.channels;
    at::parallel_for(0, tasks(), std::max<int64_t>(1, kChunk * tasks() / elements), f);
  }
  // Of a task that is a group of channels: all of them together.
  Section group_section(int64_t task) const {
    const int64_t first = task * group, last = std::min(first + group, layout.channels);
    Section all = section(first, 0, layout.per_channel());
    all.together = last - first;
    return all;
  }
  // f(section) for the sections, of one channel each, that one of several channels consists of.
  template <class F>
  void for_each_part(const Section& s, F&& f) const {
    if (s.together == 1) return f(s);
    for (int64_t begin = s.begin; begin < s.end; begin += block)
      for (int64_t c = s.channel; c < s.channel + s.together; ++c) f(section(c, begin, std::min(begin + block, s.end)));
  }
  // f(section) for all elements, in any order.
  template <class F>
  void for_each_section(F&& f) const {
    for_each([&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) f(task_is_group() ? group_section(task) : section(task));
    });
  }
};

// `rows` arrays of padded(channels) values, zero to begin with.
template <class V>
class ChannelRows {
 public:
  ChannelRows(int rows, int64_t channels) : pitch_(padded(channels)), values_(new V[size_t(rows * pitch_)]()) {}
  V* operator[](int row) const { return values_.get() + row * pitch_; }

 private:
  int64_t pitch_;
  std::unique_ptr<V[]> values_;
};

// `rows` arrays of coefficients as kernels take them.
template <class C>
class Coefficients {
 public:
  Coefficients(int rows, int64_t channels)
      : rows_(rows), channels_(channels), pitch_(repeated(channels)), values_(new C[size_t(rows * pitch_)]()) {}
  C* operator[](int row) const { return values_.get() + row * pitch_; }
  // When those of all channels are there.
  void repeat() const {
    for (int row = 0; row < rows_; ++row)
      for (int64_t c = channels_; c < pitch_; ++c) (*this)[row][c] = (*this)[row][c - channels_];
  }

 private:
  int rows_;
  int64_t channels_, pitch_;
  std::unique_ptr<C[]> values_;
};

// The two sums of every task: one pair of numbers in the planes layout, one pair of rows in the other.
class PartialSums {
 public:
  explicit PartialSums(const Partition& p)
      : partition_(p),
        pitch_(p.layout.channels_last ? padded(p.layout.channels) : 1),
        values_(new double[size_t(2 * pitch_ * p.tasks())]) {}

  double* of_task(int64_t task) const { return values_.get() + 2 * pitch_ * task; }

  // Each channel's totals, added up in the order of the chunks.
  void total(double* a, double* b) const {
    const int64_t channels = partition_.layout.channels, chunks = partition_.chunks;
    std::fill_n(a, channels, 0.0);
    std::fill_n(b, channels, 0.0);
    if (partition_.layout.channels_last) {
      for (int64_t k = 0; k < chunks; ++k) add(of_task(k), of_task(k) + pitch_, channels, a, b);
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < chunks; ++k) add(of_task(c * chunks + k), of_task(c * chunks + k) + 1, 1, a + c, b + c);
    }
  }

 private:
  static void add(const double* from_a, const double* from_b, int64_t count, double* a, double* b) {
    for (int64_t i = 0; i < count; ++i) a[i] += from_a[i], b[i] += from_b[i];
  }

  Partition partition_;
  int64_t pitch_;
  std::unique_ptr<double[]> values_;
};

// gather(section, sums) for all sections, of one channel each or of rows, then finish(first, last, sums, other sums) of
// all channels, then write(section) for all elements. Where a task is a group of channels the three follow each other.
// `looks` is how often to gather; refine(first, last, sums) comes between.
template <class Gather, class Refine, class Finish, class Write>
void in_two_passes(const Partition& p, int looks, Gather&& gather, Refine&& refine, Finish&& finish, Write&& write) {
  if (p.task_is_group()) {
    p.for_each([&](int64_t first_task, int64_t last_task) {
      for (int64_t task = first_task; task < last_task; ++task) {
        const Section all = p.group_section(task);
        const int64_t first = all.channel, last = all.channel + all.together;
        double sums[2][kMostInGroup] = {};
        for (int look = 0; look < looks; ++look) {
          if (look > 0) refine(first, last, sums[0]);
          std::fill_n(sums[0], 2 * kMostInGroup, 0.0);
          p.for_each_part(all, [&](const Section& section) {
            double more[2];
            gather(section, more);
            for (int i = 0; i < 2; ++i) sums[i][section.channel - first] += more[i];
          });
        }
        finish(first, last, sums[0], sums[1]);
        write(all);
      }
    });
    return;
  }
  const int64_t channels = p.layout.channels;
  const ChannelRows<double> totals(2, channels);
  if (looks > 0) {
    const PartialSums sums(p);
    for (int look = 0; look < looks; ++look) {
      if (look > 0) refine(0, channels, totals[0]);
      p.for_each([&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) gather(p.section(task), sums.of_task(task));
      });
      sums.total(totals[0], totals[1]);
    }
  }
  finish(0, channels, totals[0], totals[1]);
  p.for_each([&](int64_t first, int64_t last) {
    for (int64_t task = last; task-- > first;)
      write(p.section(task));  // backwards: what was read last is still in the cache
  });
}

// f(c, element) for the elements of a parameter or statistic.
template <class F>
void for_each_value(const Tensor& t, F&& f) {
  dispatch_floating(t.scalar_type(), "batch_norm", [&](auto tag) {
    auto* p = static_cast<decltype(tag)*>(t.data_ptr());
    const int64_t channels = t.size(0), stride = t.stride(0);
    if (stride == 1) {
      for (int64_t c = 0; c < channels; ++c) f(c, p[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) f(c, p[c * stride]);
    }
  });
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
}

template <class P>
void assign(P& element, double value) {
  element = from_compute<P>(compute_t<P>(value));
}

inline void read_values(const Tensor& t, int64_t channels, double otherwise, double* values) {
  if (t.defined()) {
    for_each_value(t, [&](int64_t c, const auto& element) { values[c] = double(to_compute(element)); });
  } else {
    std::fill_n(values, channels, otherwise);
  }
}

inline void update_running(const Tensor& statistic, const double* of_batch, double factor) {
  if (!statistic.defined()) return;
  for_each_value(statistic, [&](int64_t c, auto& element) {
    assign(element, updated_running(double(to_compute(element)), of_batch[c], factor));
  });
}

// What x is normalised with in evaluation or was in training: a pair of numbers for the mean, 1 / deviation.
inline void read_statistics(const Statistics& statistics, int64_t channels, double* centre, double* delta,
                            double* invstd) {
  if (statistics.stats.defined()) {
    dispatch_floating(statistics.stats.scalar_type(), "batch_norm", [&](auto tag) {
      const auto* values = const_data<decltype(tag)>(statistics.stats);
      for (double* row : {centre, delta, invstd})
        for (int64_t c = 0; c < channels; ++c) row[c] = double(to_compute(*values++));
    });
    return;
  }
  read_values(statistics.running_mean, channels, 0.0, centre);
  std::fill_n(delta, channels, 0.0);
  read_values(statistics.running_var, channels, 1.0, invstd);
  for (int64_t c = 0; c < channels; ++c) invstd[c] = inverse_deviation(invstd[c], statistics.eps);
}

// The moments of x itself.
template <class T>
void gather_moments(const Section& s, const T* x, const double* centre, double* sums) {
  if (s.rows) {
    kernels<T>().moments_rows(x, s.planes.channels, s.begin, s.end, centre, sums);
  } else {
    kernels<T>().moments_planes(x, s.planes, s.channel, s.begin, s.end, centre[s.channel], sums);
  }
}

// dx where the statistics are not constants.
template <class T>
void input_gradient(const Section& s, const T* dy, const T* x, T* dx, const BackwardCoefficients<compute_t<T>>& f) {
  if (s.rows) {
    kernels<T>().grad_input_rows(dy, x, dx, s.planes.channels, s.begin, s.end, f);
  } else {
    kernels<T>().grad_input_planes(dy, x, dx, s, f);
  }
}

// Training. make_work(T{}, partition) gives the Work<T>.
template <class MakeWork>
void train_in_passes(const ChannelLayout& layout, const Tensor& x, const Affine& affine, const Statistics& statistics,
                     const Running& running, MakeWork&& make_work) {
  const Partition partition(layout, true);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const ChannelRows<double> rows(4, channels);
  double *const w = rows[0], *const b = rows[1], *const centre = rows[2], *const variance = rows[3];
  double* const mean = centre;  // which a channel's centre becomes when it is finished
  read_values(affine.weight, channels, 1.0, w);
  read_values(affine.bias, channels, 0.0, b);

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const auto work = make_work(tag, partition);
    // What is known of the mean after the first look at a channel: any of its values does for a start.
    for (int64_t c = 0; c < channels; ++c) centre[c] = work.start(c);
    const Coefficients<C> coefficients(4, channels);
    const ForwardCoefficients<C> forward = {coefficients[0], coefficients[1], coefficients[2], coefficients[3]};
    C* const saved = data<C>(statistics.stats);

    // Double sums of doubles have no digits to spare: a second look, centred on the mean, restores those that the
    // first one lost.
    constexpr int kLooks = std::is_same_v<T, double> ? 2 : 1;
    in_two_passes(
        partition, kLooks, [&](const Section& s, double* sums) { work.moments(s, centre, sums); },
        [&](int64_t first, int64_t last, const double* sum) {
          for (int64_t c = first; c < last; ++c) centre[c] += sum[c - first] / n;
        },
        [&](int64_t first, int64_t last, const double* sum, const double* sum_of_squares) {
          for (int64_t c = first; c < last; ++c) {
            const Moments<double> m = moments_from_sums(n, sum[c - first], sum_of_squares[c - first]);
            const double invstd = inverse_deviation(m.m2 / n, statistics.eps);
            coefficients[0][c] = saved[c] = C(centre[c]);
            coefficients[1][c] = saved[channels + c] = C(m.mean + (centre[c] - double(saved[c])));
            saved[2 * channels + c] = C(invstd);
            coefficients[2][c] = C(double(saved[2 * channels + c]) * w[c]);  // as backward has it
            coefficients[3][c] = C(b[c]);
            mean[c] += m.mean;
            variance[c] = m.m2 / (n - 1);
          }
          if (layout.channels_last) coefficients.repeat();
        },
        [&](const Section& s) { work.normalize(s, forward); });
  });

  int64_t batches = 0;
  if (running.num_batches_tracked.defined()) batches = ++*running.num_batches_tracked.mutable_data_ptr<int64_t>();
  const double factor = running.momentum ? *running.momentum : 1.0 / double(batches);
  update_running(running.mean, mean, factor);
  update_running(running.var, variance, factor);
}

// The first four of the coefficients, from what read_statistics and read_values have read.
template <class C>
ForwardCoefficients<C> forward_coefficients(const Coefficients<C>& to, int64_t channels, const double* centre,
                                            const double* delta, const double* invstd, const double* w,
                                            const double* b) {
  std::copy_n(centre, channels, to[0]);
  std::copy_n(delta, channels, to[1]);
  for (int64_t c = 0; c < channels; ++c) to[2][c] = C(invstd[c] * w[c]);
  std::copy_n(b, channels, to[3]);
  return {to[0], to[1], to[2], to[3]};
}

// Evaluation, or with statistics.stats those: one pass.
template <class MakeWork>
void eval_in_passes(const ChannelLayout& layout, const Tensor& x, const Affine& affine, const Statistics& statistics,
                    MakeWork&& make_work) {
  const Partition partition(layout, false);
  const int64_t channels = layout.channels;
  const ChannelRows<double> rows(5, channels);
  double *const centre = rows[0], *const delta = rows[1], *const invstd = rows[2], *const w = rows[3];
  double* const b = rows[4];
  read_statistics(statistics, channels, centre, delta, invstd);
  read_values(affine.weight, channels, 1.0, w);
  read_values(affine.bias, channels, 0.0, b);

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using C = compute_t<decltype(tag)>;
    const auto work = make_work(tag, partition);
    const Coefficients<C> coefficients(4, channels);
    const ForwardCoefficients<C> forward = forward_coefficients(coefficients, channels, centre, delta, invstd, w, b);
    coefficients.repeat();
    partition.for_each_section([&](const Section& s) { work.normalize(s, forward); });
  });
}

// Backward of both. Without statistics.stats the running statistics normalise, which are constants; with
// statistics.grad_means the means of the gradients are not those of these tensors. further_sums: whether the Work has
// sums of its own to gather with those of the gradients.
template <class MakeWork>
void backward_in_passes(const ChannelLayout& layout, const Tensor& x, const Affine& affine,
                        const Statistics& statistics, const Gradients& gradients, MakeWork&& make_work,
                        bool further_sums = false) {
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const bool training = statistics.stats.defined();
  const bool has_means = statistics.grad_means.defined();
  const bool need_sums = further_sums || (training && !has_means && gradients.input.defined()) ||
                         gradients.weight.defined() || gradients.bias.defined();
  const Partition partition(layout, need_sums);
  const ChannelRows<double> rows(7, channels);
  double *const centre = rows[0], *const delta = rows[1], *const invstd = rows[2], *const w = rows[3];
  double *const b = rows[4], *const sum_dy = rows[5], *const sum_dy_x = rows[6];
  read_statistics(statistics, channels, centre, delta, invstd);
  read_values(affine.weight, channels, 1.0, w);
  read_values(affine.bias, channels, 0.0, b);

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using C = compute_t<decltype(tag)>;
    const auto work = make_work(tag, partition);
    const C* const means = has_means ? const_data<C>(statistics.grad_means) : nullptr;
    const Coefficients<C> coefficients(6, channels);
    const ForwardCoefficients<C> forward = forward_coefficients(coefficients, channels, centre, delta, invstd, w, b);
    const BackwardCoefficients<C> backward = {coefficients[0], coefficients[1], coefficients[2],
                                              training ? coefficients[4] : nullptr, coefficients[5]};

    in_two_passes(
        partition, need_sums ? 1 : 0, [&](const Section& s, double* sums) { work.grad_sums(s, forward, centre, sums); },
        [](int64_t, int64_t, const double*) {},
        [&](int64_t first, int64_t last, const double* sum, const double* sum_of_products) {
          for (int64_t c = first; c < last; ++c) {
            sum_dy[c] = sum[c - first];
            sum_dy_x[c] = sum_of_products[c - first] - delta[c] * sum_dy[c];
            const double mean_dy = has_means ? double(means[c]) : sum_dy[c] / n;
            const double mean_dy_x_hat = has_means ? double(means[channels + c]) : sum_dy_x[c] / n * invstd[c];
            coefficients[4][c] = C(mean_dy);
            coefficients[5][c] = C(mean_dy_x_hat * invstd[c]);
          }
          if (layout.channels_last) coefficients.repeat();
        },
        [&](const Section& s) { work.grad_input(s, forward, backward); });
  });

  if (gradients.weight.defined())
    for_each_value(gradients.weight, [&](int64_t c, auto& element) { assign(element, sum_dy_x[c] * invstd[c]); });
  if (gradients.bias.defined())
    for_each_value(gradients.bias, [&](int64_t c, auto& element) { assign(element, sum_dy[c]); });
}

}  // namespace fastreg::cpu
