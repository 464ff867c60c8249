// How the elements of a batch norm are divided into tasks: by the shape alone, never by the number of threads, so that
// the result does not depend on that either. And arrays of per-channel numbers, of tasks or of all.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "../batch_norm_operators.h"
#include "kernels.h"

namespace fastreg::cpu {

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
    if (!l.channels_last) {
      chunk = l.channels < kFewChannels ? kChunk : n;
    } else if (has_sums) {
      // As many chunks for each of two or four threads.
      int64_t most = std::clamp(n / std::max<int64_t>(64, kChunk / l.channels), int64_t(1), kMostChunks);
      if (most > 4) most = most / 4 * 4;
      chunk = whole_lines((n + most - 1) / most);
    } else {
      chunk = whole_lines(kChunk / 4 / l.channels + 1);
    }
    chunks = (n + chunk - 1) / chunk;
    block = n;
    if (task_is_group() && l.size < kShortPlane) {
      const int64_t most = std::min({kMostInGroup, kGroupElements / n, l.channels / 16});
      group = std::max<int64_t>(1, std::min(most, kTile / l.size));
      if (group > 1) block = std::max<int64_t>(1, kTile / padded(l.size)) * l.size;
    }
  }

  // So many rows or more, that begin and end with cache lines of the tensor.
  int64_t whole_lines(int64_t rows) const {
    constexpr int64_t kLine = 64;
    const int64_t together = kLine / std::gcd(kLine, layout.channels);
    return (rows + together - 1) / together * together;
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

// The same with repeated(channels) values, as kernels take coefficients.
template <class C>
class Coefficients : public ChannelRows<C> {
 public:
  Coefficients(int rows, int64_t channels)
      : ChannelRows<C>(rows, repeated(channels)), rows_(rows), channels_(channels) {}
  // When those of all channels are there.
  void repeat() const {
    for (int row = 0; row < rows_; ++row)
      for (int64_t c = channels_; c < repeated(channels_); ++c) (*this)[row][c] = (*this)[row][c - channels_];
  }

 private:
  int rows_;
  int64_t channels_;
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

}  // namespace fastreg::cpu
