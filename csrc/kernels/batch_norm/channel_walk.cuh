// A thread's way through a tensor of channels, in either layout ("planes" and "rows", see streamed.cuh).
#pragma once

#include "kernels/common/device.h"
#include "kernels/common/memory.h"
#include "kernels/common/vector.h"

namespace fastreg {

// How the work is divided among blocks: groups of neighbouring channels, each divided among `splits` blocks.
struct Division {
  int64_t channels;
  int64_t plane_vectors;  // planes: vectors in one channel of one plane
  int64_t length;         // what the splits divide: vectors of a channel (planes), rows (rows)
  int64_t split_length;   // how much of it one split takes
  int columns;            // threads side by side: vectors of neighbouring channels (rows), 1 (planes)

  // Of neighbouring splits together.
  __host__ __device__ int64_t length_of(int64_t first, int64_t splits = 1) const {
    const int64_t rest = length - first * split_length, most = splits * split_length;
    return rest < most ? rest : most;
  }
};

constexpr int kInFlight = 4;  // vectors that a thread loads before it uses any

template <int V, bool kRows>
class Walk {
 public:
  // Channels that a thread has accumulators' results for.
  static constexpr int kChannels = kRows ? V : 1;

  // In a grid [groups, splits].
  __device__ explicit Walk(const Division& d) : Walk(d, blockIdx.x, blockIdx.y) {}

  __device__ Walk(const Division& d, int64_t group, int64_t split) {
    const int64_t begin = split * d.split_length;
    const int64_t end = begin + d.split_length < d.length ? begin + d.split_length : d.length;
    const int thread = computed_here(int(threadIdx.x));
    const int64_t step = computed_here(int(blockDim.x)) / d.columns;
    const int64_t at = begin + thread / d.columns;
    left_ = at < end ? (end - at + step - 1) / step : 0;
    if constexpr (kRows) {
      channel_ = (group * d.columns + thread % d.columns) * V;
      if (channel_ >= d.channels) left_ = 0;
      offset_ = at * d.channels + channel_;
      stride_ = step * d.channels;
    } else {
      // Divided by the plane's length once; from then on the position in the plane is carried along.
      const int64_t size = d.plane_vectors * V, pitch = d.channels * size;
      channel_ = group;
      plane_vectors_ = d.plane_vectors;
      within_ = at % plane_vectors_;
      within_step_ = step % plane_vectors_;
      offset_ = at / plane_vectors_ * pitch + channel_ * size + within_ * V;
      stride_ = step / plane_vectors_ * pitch + within_step_ * V;
      carry_ = pitch - size;
    }
  }

  __device__ __forceinline__ int64_t channel(int k) const { return channel_ + k; }
  // Whether element e of a vector is of channel k.
  static __device__ __forceinline__ bool is_of(int k, int e) { return e % kChannels == k; }
  __device__ __forceinline__ int64_t left() const { return left_; }
  __device__ __forceinline__ int64_t offset() const { return offset_; }  // of the vector, in elements

  // The number, but no more than are left.
  __device__ __forceinline__ int64_t least(int64_t number) const { return number < left_ ? number : left_; }

  __device__ __forceinline__ void next() {
    --left_;
    offset_ += stride_;
    if constexpr (!kRows) {
      within_ += within_step_;
      if (within_ >= plane_vectors_) {
        within_ -= plane_vectors_;
        offset_ += carry_;
      }
    }
  }

  // f(offsets) for the next `count` vectors (default: all that are left), kAtOnce at a time, then one at a time.
  template <int kAtOnce = kInFlight, class F>
  __device__ __forceinline__ void for_each(F&& f) {
    for_each<kAtOnce>(left_, f);
  }
  // fetch(offset) for a number of vectors, then use(what was fetched, its place among them) for each of these, kAtOnce
  // at a time. kRolled: the code of `use` is there once, for what is long.
  template <bool kRolled, int kAtOnce = kInFlight, class Fetch, class Use>
  __device__ __forceinline__ void for_each_fetched(Fetch&& fetch, Use&& use) {
    using Fetched = decltype(fetch(int64_t()));
    if constexpr (kRolled) {
      while (left_ > 0) {
        const int count = int(least(kAtOnce));
        Fetched fetched[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (u >= count) break;
          fetched[u] = fetch(offset_);
          next();
        }
#pragma unroll 1
        for (int u = 0; u < count; ++u) {
          use(fetched[0], u);
#pragma unroll
          for (int later = 1; later < kAtOnce; ++later) fetched[later - 1] = fetched[later];
        }
      }
    } else {
      for_each<kAtOnce>([&](const auto& offsets) {
        constexpr int kCount = sizeof(offsets) / sizeof(offsets[0]);
        Fetched fetched[kCount];
#pragma unroll
        for (int u = 0; u < kCount; ++u) fetched[u] = fetch(offsets[u]);
#pragma unroll
        for (int u = 0; u < kCount; ++u) use(fetched[u], u);
      });
    }
  }
  template <int kAtOnce = kInFlight, class F>
  __device__ __forceinline__ void for_each(int64_t count, F&& f) {
    const int64_t rest = left_ - count;
    int64_t several[kAtOnce], one[1];
    while (left_ - rest >= kAtOnce) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u, next()) several[u] = offset_;
      f(several);
    }
    for (; left_ > rest; next()) {
      one[0] = offset_;
      f(one);
    }
  }

 private:
  int64_t channel_, offset_, stride_, left_;
  int64_t plane_vectors_ = 0, within_ = 0, within_step_ = 0, carry_ = 0;  // planes only
};

}  // namespace fastreg
