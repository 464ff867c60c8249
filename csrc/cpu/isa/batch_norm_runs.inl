// Where the elements of a Section lie: the runs of a range of a channel ("planes" layouts), and how far ahead of an
// element its successors in runs or rows are fetched.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// The contiguous runs that a range of a channel's elements consists of, or of several channels' together.
class Runs {
 public:
  explicit Runs(const Section& s)
      : size_(s.planes.size),
        pitch_((s.planes.channels - s.together) * size_),
        first_(s.channel),
        last_(s.channel + s.together - 1),
        next_channel_(s.channel),
        left_(s.end - s.begin) {
    const int64_t plane = s.begin / size_, within = s.begin - plane * size_;
    next_ = (plane * s.planes.channels + s.channel) * size_ + within;
    rest_ = size_ - within;
  }

  bool advance() {
    if (left_ <= 0) return false;
    offset = next_;
    channel = next_channel_;
    count = rest_ < left_ ? rest_ : left_;
    next_ += count;
    if (next_channel_++ == last_) {
      next_channel_ = first_;
      next_ += pitch_;
      left_ -= count;
      rest_ = size_;
    }
    return true;
  }

  int64_t offset = 0, count = 0, channel = 0;

 private:
  int64_t size_, pitch_;  // pitch_: from the end of a plane's runs to the next plane's
  int64_t first_, last_, next_channel_;
  int64_t left_, next_, rest_;
};

// Memory is fetched into the second-level cache ahead of time, as the hardware does within a page of 4 KiB alone, and
// as far as it sees a pattern: at each element the one in its place in runs or rows to come.
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

// From an element of a channel to the one in its place in the plane at least so many bytes further on in the channel,
// or in the channels together; or in the next channel, where that has the next turn.
template <class T>
FASTREG_HD int64_t prefetch_distance(const Planes& planes, int64_t together) {
  if (planes.grouped && together == 1) return planes.size;
  constexpr int64_t kAhead = 2048 / sizeof(T);
  const int64_t run = together * planes.size;
  return (kAhead + run - 1) / run * planes.channels * planes.size;
}

// Rows that share one load and store of the channels' sums, which stay in the first-level cache.
constexpr int kRowGroup = 8;

// From an element to the one in its place in a row group to come.
template <class T>
FASTREG_HD int64_t prefetch_distance(int64_t channels) {
  constexpr int64_t kAhead = 8192 / sizeof(T);
  const int64_t group = kRowGroup * channels;
  return (kAhead + group - 1) / group * group;
}

}  // namespace fastreg::cpu::FASTREG_ISA
