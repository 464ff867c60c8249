// The passes of batch norm over memory, and what is computed of channels between them. The passes themselves are a
// Work<T>'s, which knows the tensors of a call:
//   value(i)                      element i of what is normalised
//   moments(section, look, centre, sums), normalize(section, forward)
//   grad_sums(section, look, forward, mean, sums), grad_input(section, forward, backward)
// do what the kernels of the same names do (isa/kernels.h).
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "cpu/batch_norm_partition.h"
#include "kernels/batch_norm/moments.h"

namespace fastreg::cpu {

using at::Tensor;

// One reading of elements for their sums; again: whether they have been read for them before.
struct Look {
  Summation how;
  bool again;
};

// Few elements are in the cache: to sum them faster gains less than to sum them twice may cost. In short runs it gains
// nothing.
template <class T>
Summation first_summation(const ChannelLayout& l) {
  constexpr int64_t kMany = 512, kShortRun = 128;
  const bool gains = l.per_channel() >= kMany && (l.channels_last || l.size >= kShortRun);
  return gains && !std::is_same_v<T, double> ? Summation::fast : Summation::precise;
}

// Whether fast sums of d = x - centre are good for the moments: they have not overflowed, the mean is not so far from
// the centre that it takes the variance's digits, and where squares may have been lost eps is more than they.
inline bool are_trusted(double n, double sum, double sum_of_squares, double eps) {
  const double mean = sum / n, variance = sum_of_squares / n - mean * mean;
  const bool has_squares = sum_of_squares / n >= 0x1p-110 || eps >= 0x1p-66;
  return std::isfinite(sum) && std::isfinite(sum_of_squares) && mean * mean <= 16 * variance && has_squares;
}
// The same of dy and dy (x - mean), of which the gradient takes the mean, times invstd.
inline bool are_trusted_gradients(double sum, double sum_of_products, double invstd) {
  return std::isfinite(sum) && std::isfinite(sum_of_products) && invstd <= 0x1p20;
}

// look(look, sums) for two rows of sums of channels from the first one on, and where doubts(c, sum, other sum) of any
// once more, for those of it alone.
template <class LookAt, class Doubts>
void look_once_or_twice(Summation how, int64_t first, int64_t last, const ChannelRows<double>& sums, LookAt&& look,
                        Doubts&& doubts) {
  look(Look{how, false}, sums);
  std::vector<int64_t> doubtful;
  for (int64_t c = first; c < last; ++c)
    if (doubts(c, sums[0][c - first], sums[1][c - first])) doubtful.push_back(c - first);
  if (doubtful.empty()) return;
  const ChannelRows<double> again(2, last - first);
  look(Look{Summation::precise, true}, again);
  for (const int64_t i : doubtful) sums[0][i] = again[0][i], sums[1][i] = again[1][i];
}

// begin(first, last) of all channels, then gather(section, look, sums) for all sections, of one channel each or of
// rows, then finish(first, last, sums, other sums) of all channels, then write(section) for all elements. Where a task
// is all elements of some channels these follow each other. how: how to gather first, or nothing if there is nothing
// to; doubts: as above.
template <class Begin, class Gather, class Doubts, class Finish, class Write>
void in_two_passes(const Partition& p, std::optional<Summation> how, Begin&& begin, Gather&& gather, Doubts&& doubts,
                   Finish&& finish, Write&& write) {
  const int64_t channels = p.layout.channels;
  const auto passes = [&](int64_t first, int64_t last, auto&& look, auto&& write_all) {
    const ChannelRows<double> sums(2, last - first);
    begin(first, last);
    if (how) look_once_or_twice(*how, first, last, sums, look, doubts);
    finish(first, last, sums[0], sums[1]);
    write_all();
  };
  if (p.task_is_group()) {
    return p.for_each([&](int64_t first_task, int64_t last_task) {
      for (int64_t task = first_task; task < last_task; ++task) {
        const Section all = p.group_section(task);
        const auto look = [&](const Look& l, const ChannelRows<double>& sums) {
          if (all.rows) return gather(all, l, sums[0]);
          p.for_each_part(all, [&](const Section& section) {
            double more[2];
            gather(section, l, more);
            for (int i = 0; i < 2; ++i) sums[i][section.channel - all.channel] += more[i];
          });
        };
        passes(all.channel, all.channel + all.together, look, [&] { write(all); });
      }
    });
  }
  std::optional<PartialSums> partial;
  if (how) partial.emplace(p);
  const auto look = [&](const Look& l, const ChannelRows<double>& sums) {
    p.for_each([&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) gather(p.section(task), l, partial->of_task(task));
    });
    partial->total(sums[0], sums[1]);
  };
  passes(0, channels, look, [&] {
    p.for_each([&](int64_t first, int64_t last) {
      for (int64_t task = last; task-- > first;)
        write(p.section(task));  // backwards: what was read last is still in the cache
    });
  });
}

// Where channels' sums are to be centred. In the planes layout at their first values: for some channels that is far
// from the mean, and they are looked at again. In the rows layout that would mean all, so it is the mean of some rows
// from several places, so many that the mean of equal values is exact. centre is zero before.
template <class T, class Work>
void find_centres(const Partition& p, const Work& work, Summation how, int64_t first, int64_t last, double* centre) {
  if (!p.layout.channels_last) {
    for (int64_t c = first; c < last; ++c) centre[c] = work.value(c * p.layout.size);
    return;
  }
  const int64_t places = how == Summation::fast ? 4 : 1, rows = places, n = p.layout.per_channel();
  const ChannelRows<double> sums(2, last - first), means(1, last - first);
  for (int64_t place = 0; place < places; ++place) {
    const int64_t begin = n / places * place;
    work.moments(p.section(first, last, begin, begin + rows), {Summation::precise, false}, centre, sums[0]);
    for (int64_t i = 0; i < last - first; ++i) means[0][i] += sums[0][i] / double(places * rows);
  }
  for (int64_t c = first; c < last; ++c) centre[c] = double(compute_t<T>(means[0][c - first]));
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

template <class V>
void read_values(const Tensor& t, int64_t channels, double otherwise, V* values) {
  if (t.defined()) {
    for_each_value(t, [&](int64_t c, const auto& element) { values[c] = V(to_compute(element)); });
  } else {
    std::fill_n(values, channels, V(otherwise));
  }
}

inline void update_running(const Tensor& statistic, const double* of_batch, double factor) {
  if (!statistic.defined()) return;
  for_each_value(statistic, [&](int64_t c, auto& element) {
    assign(element, updated_running(double(to_compute(element)), of_batch[c], factor));
  });
}

// What x is normalised with in evaluation or was in training, and 1 / deviation.
template <class C>
ForwardCoefficients<C> read_coefficients(const Coefficients<C>& to, int64_t channels, const Affine& affine,
                                         const Statistics& statistics, double* invstd) {
  if (statistics.stats.defined()) {
    const C* const stats = const_data<C>(statistics.stats);
    std::copy_n(stats, channels, to[0]);
    std::copy_n(stats + channels, channels, to[1]);
    std::copy_n(stats + 2 * channels, channels, invstd);
  } else {
    read_values(statistics.running_mean, channels, 0.0, to[0]);
    read_values(statistics.running_var, channels, 1.0, invstd);
    for (int64_t c = 0; c < channels; ++c) invstd[c] = inverse_deviation(invstd[c], statistics.eps);
  }
  read_values(affine.weight, channels, 1.0, to[2]);
  for (int64_t c = 0; c < channels; ++c) to[2][c] = C(invstd[c] * double(to[2][c]));
  read_values(affine.bias, channels, 0.0, to[3]);
  return {to[0], to[1], to[2], to[3]};
}

// Training. make_work(T{}, partition) gives the Work<T>.
template <class MakeWork>
void train_in_passes(const ChannelLayout& layout, const Tensor& x, const Affine& affine, const Statistics& statistics,
                     const Running& running, MakeWork&& make_work) {
  const Partition partition(layout, true);
  const int64_t channels = layout.channels;
  const double n = double(layout.per_channel());
  const ChannelRows<double> rows(2, channels);
  double *const centre = rows[0], *const variance = rows[1];
  double* const mean = centre;  // which a channel's centre becomes when it is finished

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const auto work = make_work(tag, partition);
    const Coefficients<C> coefficients(4, channels);
    const ForwardCoefficients<C> forward = {coefficients[0], coefficients[1], coefficients[2], coefficients[3]};
    read_values(affine.weight, channels, 1.0, coefficients[2]);
    read_values(affine.bias, channels, 0.0, coefficients[3]);
    C* const saved = data<C>(statistics.stats);
    const Summation how = first_summation<T>(layout);

    in_two_passes(
        partition, how,
        [&](int64_t first, int64_t last) { find_centres<T>(partition, work, how, first, last, centre); },
        [&](const Section& s, const Look& look, double* sums) { work.moments(s, look, centre, sums); },
        [&](int64_t c, double sum, double sum_of_squares) {
          if (!std::is_same_v<T, double>)
            return how == Summation::fast && !are_trusted(n, sum, sum_of_squares, statistics.eps);
          // Double sums of doubles have no digits to spare: a second look, centred on the mean, restores those that
          // the first one lost.
          centre[c] += sum / n;
          return true;
        },
        [&](int64_t first, int64_t last, const double* sum, const double* sum_of_squares) {
          // Divisions are dear where there are many channels of few values.
          const double each = 1 / n, each_but_one = 1 / (n - 1);
          for (int64_t c = first; c < last; ++c) {
            const double distance = sum[c - first] * each;  // of the mean from the centre
            const double squares = sum_of_squares[c - first] - sum[c - first] * distance;
            const double m2 = squares < 0 ? 0 : squares;  // NaN stays NaN
            const C rounded = C(centre[c] + distance), rest = C((centre[c] - double(rounded)) + distance);
            const C invstd = C(inverse_deviation(m2 * each, statistics.eps));
            coefficients[0][c] = saved[c] = rounded;
            coefficients[1][c] = saved[channels + c] = rest;
            saved[2 * channels + c] = invstd;
            coefficients[2][c] = C(double(invstd) * double(coefficients[2][c]));  // as backward has it
            mean[c] += distance;
            variance[c] = m2 * each_but_one;
          }
          if (last - first == channels) coefficients.repeat();
        },
        [&](const Section& s) { work.normalize(s, forward); });
  });

  int64_t batches = 0;
  if (running.num_batches_tracked.defined()) batches = ++*running.num_batches_tracked.mutable_data_ptr<int64_t>();
  const double factor = running.momentum ? *running.momentum : 1.0 / double(batches);
  update_running(running.mean, mean, factor);
  update_running(running.var, variance, factor);
}

// Evaluation, or with statistics.stats those: one pass.
template <class MakeWork>
void eval_in_passes(const ChannelLayout& layout, const Tensor& x, const Affine& affine, const Statistics& statistics,
                    MakeWork&& make_work) {
  const Partition partition(layout, false);
  const int64_t channels = layout.channels;
  const ChannelRows<double> invstd(1, channels);
  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using C = compute_t<decltype(tag)>;
    const auto work = make_work(tag, partition);
    const Coefficients<C> coefficients(4, channels);
    const auto forward = read_coefficients(coefficients, channels, affine, statistics, invstd[0]);
    coefficients.repeat();
    const auto normalize = [&](const Section& s) { work.normalize(s, forward); };
    if (layout.channels_last) return partition.for_each_section(normalize);
    for_each_section_in_memory(layout, normalize);
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
  const ChannelRows<double> rows(4, channels);
  double *const centre = rows[0], *const invstd = rows[1], *const sum_dy = rows[2], *const sum_dy_x = rows[3];

  dispatch_floating(x.scalar_type(), "batch_norm", [&](auto tag) {
    using T = decltype(tag);
    using C = compute_t<T>;
    const auto work = make_work(tag, partition);
    const C* const means = has_means ? const_data<C>(statistics.grad_means) : nullptr;
    const Coefficients<C> coefficients(6, channels);
    const auto forward = read_coefficients(coefficients, channels, affine, statistics, invstd);
    if (layout.channels_last) coefficients.repeat();
    std::copy_n(forward.centre, channels, centre);
    const BackwardCoefficients<C> backward = {coefficients[0], coefficients[1], coefficients[2],
                                              training ? coefficients[4] : nullptr, coefficients[5]};

    const Summation how = first_summation<T>(layout);

    in_two_passes(
        partition, need_sums ? std::optional(how) : std::nullopt, [](int64_t, int64_t) {},
        [&](const Section& s, const Look& look, double* sums) { work.grad_sums(s, look, forward, centre, sums); },
        [&](int64_t c, double sum, double sum_of_products) {
          return how == Summation::fast && !are_trusted_gradients(sum, sum_of_products, invstd[c]);
        },
        [&](int64_t first, int64_t last, const double* sum, const double* sum_of_products) {
          const double each = 1 / n;
          for (int64_t c = first; c < last; ++c) {
            sum_dy[c] = sum[c - first];
            sum_dy_x[c] = sum_of_products[c - first] - double(forward.delta[c]) * sum_dy[c];
            const double mean_dy = has_means ? double(means[c]) : sum_dy[c] * each;
            const double mean_dy_x_hat = has_means ? double(means[channels + c]) : sum_dy_x[c] * each * invstd[c];
            coefficients[4][c] = C(mean_dy);
            coefficients[5][c] = C(mean_dy_x_hat * invstd[c]);
          }
          if (last - first == channels) coefficients.repeat();
        },
        [&](const Section& s) { work.grad_input(s, forward, backward); });
  });

  if (gradients.weight.defined())
    for_each_value(gradients.weight, [&](int64_t c, auto& element) { assign(element, sum_dy_x[c] * invstd[c]); });
  if (gradients.bias.defined())
    for_each_value(gradients.bias, [&](int64_t c, auto& element) { assign(element, sum_dy[c]); });
}

}  // namespace fastreg::cpu
