// How the elements of a batch norm are divided into tasks: by the shape alone, never by the number of threads, so that
// the result does not depend on that either. And arrays of per-channel numbers, of tasks or of all.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "cpu/isa/kernels.h"
#include "operators/batch_norm.h"

namespace fastreg::cpu {

inline constexpr int64_t kChunk = 32768;    // elements that are worth another task
inline constexpr int64_t kFewChannels = 8;  // so few channels are also divided within
inline constexpr int64_t kMostChunks = 64;
// Planes of fewer elements lie too far apart for what the processor reads ahead. Channels next to each other are then
// worked through together, as many as stay in the second-level cache: their planes follow each other in memory.
inline constexpr int64_t kShortPlane = 512;
inline constexpr int64_t kGroupElements = 65536;
inline constexpr int64_t kMostInGroup = 32;

// Of so few rows each column is worked through as a whole, columns next to each other together.
inline constexpr int64_t kFewRows = 128;

// f(first, last) over ranges of the tasks that so many elements are divided into.
template <class F>
void for_each_range(int64_t tasks, int64_t elements, F&& f) {
  at::parallel_for(0, tasks, std::max<int64_t>(1, kChunk * tasks / elements), f);
}

// How the elements are cut into tasks: where a channel's elements can stay in the cache from one reading to the next,
// all those of a group of channels, else chunks of them: in the rows layout of rows, in the planes layout, where
// channels are few, of one channel's elements, numbered channel-major.
struct Partition {
  ChannelLayout layout;
  bool sums_first;  // whether elements are read for sums before they are read again
  int64_t chunk, chunks;
  int64_t group = 1;  // channels of a task
  int64_t block;      // elements of a channel that follow each other before the next one of the group has its turn

  Partition(const ChannelLayout& l, bool has_sums) : layout(l), sums_first(has_sums) {
    const int64_t n = l.per_channel();
    if (l.channels_last) {
      chunk = chunk_of_rows();
      group = n > chunk ? l.channels : columns_of_task();
    } else {
      chunk = l.channels < kFewChannels ? kChunk : n;
    }
    chunks = (n + chunk - 1) / chunk;
    block = n;
    if (!l.channels_last && chunks == 1 && l.size < kShortPlane) {
      const int64_t most = std::min({kMostInGroup, kGroupElements / n, l.channels / 16});
      group = std::max<int64_t>(1, std::min(most, kTile / l.size));
      if (group > 1) block = std::max<int64_t>(1, kTile / padded(l.size)) * l.size;
    }
  }

  bool task_is_group() const { return chunks == 1; }
  int64_t tasks() const {
    return task_is_group() ? (layout.channels + group - 1) / group
                           : chunks * (layout.channels_last ? 1 : layout.channels);
  }
  Planes planes() const {
    return {layout.planes, layout.channels, layout.size, sums_first && task_is_group(), group > 1};
  }
  // Of tasks that are chunks.
  Section section(int64_t task) const {
    const int64_t k = layout.channels_last ? task : task % chunks, c = layout.channels_last ? 0 : task / chunks;
    return section(c, c + group, k * chunk, std::min((k + 1) * chunk, layout.per_channel()));
  }
  // Of channels from the first to before the last.
  Section section(int64_t first, int64_t last, int64_t begin, int64_t end) const {
    return {layout.channels_last, planes(), first, begin, end, last - first};
  }
  // Of a task that is a group of channels: all of them together.
  Section group_section(int64_t task) const {
    return section(task * group, std::min((task + 1) * group, layout.channels), 0, layout.per_channel());
  }

  // f(first, last) over ranges of tasks.
  template <class F>
  void for_each(F&& f) const {
    for_each_range(tasks(), layout.per_channel() * layout.channels, f);
  }
  // f(section) for all elements, in any order.
  template <class F>
  void for_each_section(F&& f) const {
    for_each([&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) f(task_is_group() ? group_section(task) : section(task));
    });
  }
  // f(section) for the sections, of one channel each, that one of several channels consists of, in the planes layout.
  template <class F>
  void for_each_part(const Section& s, F&& f) const {
    if (s.together == 1) return f(s);
    for (int64_t begin = s.begin; begin < s.end; begin += block)
      for (int64_t c = s.channel; c < s.channel + s.together; ++c)
        f(section(c, c + 1, begin, std::min(begin + block, s.end)));
  }

 private:
  // Begins and ends with cache lines of the tensor.
  int64_t chunk_of_rows() const {
    const int64_t n = layout.per_channel(), channels = layout.channels;
    if (sums_first && n <= kFewRows) return n;
    int64_t rows = kChunk / 2 / channels + 1;
    if (sums_first) {
      // As many chunks for each of two or four threads.
      int64_t most = std::clamp(n / std::max<int64_t>(64, kChunk / channels), int64_t(1), kMostChunks);
      if (most > 2) most = (most + 1) / 4 * 4;
      rows = (n + most - 1) / most;
    }
    constexpr int64_t kLine = 64;
    const int64_t together = kLine / std::gcd(kLine, channels);
    return (rows + together - 1) / together * together;
  }
  // Whole cache lines, and eight tasks where there is work for them.
  int64_t columns_of_task() const {
    const int64_t n = layout.per_channel(), channels = layout.channels;
    int64_t columns = 64;
    while (columns < channels && columns * n < kChunk && (columns * 8 < channels || channels * n < 2 * kChunk))
      columns *= 2;
    return std::min(columns, channels);
  }
};

// f(section) for all elements, of the planes layout, in the order of memory: where nothing is read twice, that is what
// the processor expects. In pieces so small that threads have as much to do, one as the other.
template <class F>
void for_each_section_in_memory(const ChannelLayout& l, F&& f) {
  constexpr int64_t kPiece = kChunk / 4;
  const int64_t channels = std::clamp(kPiece / l.size, int64_t(1), l.channels);
  const int64_t samples = std::clamp(kPiece / (l.size * l.channels), int64_t(1), l.planes);
  const int64_t chunk = std::min(kPiece, l.size);  // of a plane
  const auto parts = [](int64_t all, int64_t each) { return (all + each - 1) / each; };
  const int64_t groups = parts(l.channels, channels), chunks = parts(l.size, chunk);
  const Planes planes = {l.planes, l.channels, l.size, false, false};
  for_each_range(parts(l.planes, samples) * groups * chunks, l.per_channel() * l.channels,
                 [&](int64_t first, int64_t last) {
                   for (int64_t task = first; task < last; ++task) {
                     const int64_t channel = task / chunks % groups * channels;
                     const int64_t sample = task / chunks / groups * samples, begin = task % chunks * chunk;
                     const int64_t end =
                         chunks > 1 ? std::min(begin + chunk, l.size) : std::min(samples, l.planes - sample) * l.size;
                     f(Section{false, planes, channel, sample * l.size + begin, sample * l.size + end,
                               std::min(channels, l.channels - channel)});
                   }
                 });
}

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
    for (int row = 0; row < rows_; ++row) cpu::repeat((*this)[row], channels_, repeated(channels_));
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
