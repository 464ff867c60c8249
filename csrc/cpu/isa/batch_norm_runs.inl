// Where the elements of a Section lie: the runs of a range of a channel ("planes" layouts), and the vectors of rows.
#pragma once

#include "cpu/isa/prefetch.h"

namespace fastreg::cpu::FASTREG_ISA {

// Memory is fetched into the second-level cache ahead of time, as the hardware does within a page of 4 KiB alone, and
// as far as it sees a pattern.
template <class T>
FASTREG_HD void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
// The last `count` elements of a run, to the end of its last line: in short runs no other line would be waited for.
template <class T>
FASTREG_HD void prefetch_last(const T* p, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) prefetch(p + i);
  prefetch(p + count - 1);
}

// So much later is what is worth to be fetched now: in elements.
template <class T>
constexpr int64_t kAhead = 2048 / sizeof(T);
template <class T>
constexpr int64_t kAheadInRows = 8192 / sizeof(T);

// Runs are cut at multiples of it: whole steps of every loop.
constexpr int64_t kStepOfRuns = 64;

// The contiguous runs that a range of a channel's elements consists of, or of several channels' together: all of a
// plane's, or where that is long its last elements apart, as what is to be fetched then lies elsewhere.
template <class T>
class Runs {
 public:
  explicit Runs(const Section& s)
      : order_{s.planes.samples, s.planes.channels, s.planes.size, s.together},
        by_channel_(s.planes.grouped && s.together == 1),
        first_(s.channel),
        left_(s.end - s.begin),
        sample_(s.begin / order_.size) {
    const int64_t within = s.begin - sample_ * order_.size;
    channel = first_;
    run_end_ = offset = (sample_ * order_.channels + channel) * order_.size + within;
    rest_ = order_.size - within;
  }

  // The next run; false if there is none.
  bool advance() {
    offset += count;
    if (offset == run_end_ && !start()) return false;
    const int64_t turn = stretch_ + ahead_.turn;
    const bool cut = order_.together == 1 && offset < turn && turn < run_end_;
    count = (cut ? turn : run_end_) - offset;
    ahead = offset + count <= turn ? ahead_.before : ahead_.after;
    return true;
  }

  int64_t offset, count = 0, channel;
  int64_t ahead = 0;  // from an element to the one to be fetched, 0: none

 private:
  // The next plane's.
  bool start() {
    if (left_ <= 0) return false;
    if (!is_started_) {
      is_started_ = true;
      find_stretch();
    } else if (++channel == first_ + order_.together) {
      left_ -= rest_;
      if (left_ <= 0) return false;
      channel = first_;
      rest_ = order_.size;
      ++sample_;
      offset += (order_.channels - order_.together) * order_.size;
      find_stretch();
    }
    if (rest_ > left_) rest_ = left_;
    run_end_ = offset + rest_;
    return true;
  }
  void find_stretch() {
    stretch_ = (sample_ * order_.channels + first_) * order_.size;
    if (by_channel_) {  // it is the next channel's turn after some planes
      ahead_ = {order_.size, first_ + 1 < order_.channels ? order_.size : 0, 0};
    } else {
      ahead_ = ahead_in_stretch(order_, first_, sample_, kAhead<T>);
      if (ahead_.turn < order_.length()) ahead_.turn = ahead_.turn / kStepOfRuns * kStepOfRuns;
    }
  }

  Stretches order_;
  bool by_channel_, is_started_ = false;
  int64_t first_, left_, sample_, rest_;
  int64_t run_end_, stretch_ = 0;  // where the plane's run ends, and where its stretch begins
  Ahead ahead_{};
};

// Rows that share one load and store of the channels' sums, which stay in the first-level cache.
constexpr int kRowGroup = 8;

// A step's columns should not be cut short by the end of each row: so many rows are then taken as one.
constexpr int64_t kMostColumns = 1024;

// f(i, channel, whole, count, ahead) for the vectors of some rows, from element i on, which is of that channel; ahead:
// as in Runs. Where rows lie together a vector may begin in one and end in the next. In wide rows some columns after
// others, so that the coefficients stay in the first-level cache.
template <class T, class F>
FASTREG_HD void for_each_vector_of_rows(const Section& s, F&& f) {
  const int64_t pitch = s.planes.channels, step = kLanes<T> % pitch;
  // The `count` elements from `at` on, which is of channel c. In line, or what f works with is read again and again.
  const auto run = [&](int64_t at, int64_t count, int64_t c, const Ahead& found) __attribute__((always_inline)) {
    const int64_t last = at + count;
    int64_t i = at, stop = at + found.turn / kLanes<T> * kLanes<T>, ahead = found.before;
    while (true) {
      for (; i + kLanes<T> <= stop; i += kLanes<T>) {
        f(i, c, std::true_type{}, kLanes<T>, ahead);
        c += step;
        if (c >= pitch) c -= pitch;
      }
      if (stop == last) break;
      stop = last;
      ahead = found.after;
    }
    if (i < last) f(i, c, std::false_type{}, last - i, ahead);
  };
  if (s.together == pitch && pitch <= kMostColumns) {
    const int64_t rows = s.planes.samples * s.planes.size;
    Ahead found = ahead_in_stretch({rows, pitch, 1, pitch}, 0, s.begin, kAheadInRows<T>);
    const int64_t with_next = rows - found.before / pitch;  // the last rows have none to fetch
    found.turn = ((with_next < s.end ? with_next : s.end) - s.begin) * pitch;
    return run(s.begin * pitch, (s.end - s.begin) * pitch, 0, found);
  }
  const int64_t end = s.channel + s.together;
  for (int64_t c = s.channel; c < end; c += kMostColumns) {
    const int64_t columns = c + kMostColumns < end ? kMostColumns : end - c;
    const Stretches order = {s.end - s.begin, pitch, 1, columns};
    for (int64_t row = s.begin; row < s.end; ++row)
      run(row * pitch + c, columns, c, ahead_in_stretch(order, c, row - s.begin, kAhead<T>));
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
