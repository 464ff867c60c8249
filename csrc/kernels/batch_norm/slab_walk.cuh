// A thread's way through the items of the slab kernels: which vectors are its own, and of which channels they are. See
// "Thread mapping" in slab.cuh.
#pragma once

#include "kernels/common/cluster.h"
#include "kernels/common/device.h"

namespace fastreg {

struct SlabDivision {
  int64_t channels, size;
  int planes;
  int group;  // channels of an item; the last item may have fewer
  int items;
  int tile_vectors;  // the largest share of a block
  int buffers;       // 1 or 2
};

constexpr int kSlabInFlight = 4;  // vectors that a thread processes at a time

// A block's share of an item, and this thread's way through it. A channel fits on chip: vectors are counted in 32 bits.
template <int V, bool kGrouped>
class SlabWalk {
 public:
  __device__ SlabWalk(const SlabDivision& d, int item) {
    const int64_t channel = int64_t(item) * d.group;
    channel_ = channel;
    channels_ = d.channels - channel < d.group ? int(d.channels - channel) : d.group;
    size_ = int(d.size);
    run_ = channels_ * size_ / V;
    const int rank = int(cluster_rank()), ranks = int(cluster_size());
    const int parts = kGrouped ? d.planes : d.planes * run_, part = kGrouped ? run_ : 1;
    const int pairs = kGrouped ? ~0 : run_ | ~1;  // see slab_part
    const int begin = int(int64_t(parts) * rank / ranks) * part & pairs;
    const int end = int(int64_t(parts) * (rank + 1) / ranks) * part & pairs;
    rows_ = int(blockDim.x) / part;
    step_ = rows_ * part;
    const int at = int(threadIdx.x);
    count_ = at < step_ && at < end - begin ? (end - begin - at + step_ - 1) / step_ : 0;
    const int64_t pitch = d.channels * d.size;
    within_ = (begin + at) % run_;
    offset_ = (begin + at) / run_ * pitch + channel * d.size + int64_t(within_) * V;
    within_step_ = step_ % run_;
    stride_ = step_ / run_ * pitch + int64_t(within_step_) * V;
    carry_ = pitch - int64_t(run_) * V;
  }

  // Of the item.
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ int channels() const { return channels_; }

  // Of this thread's vectors: how many; the channel, relative to the item's first, of the elements before boundary();
  // the others are of the next one.
  __device__ __forceinline__ int count() const { return count_; }
  __device__ __forceinline__ int first_channel() const { return kGrouped ? within_ * V / size_ : 0; }
  __device__ __forceinline__ int boundary() const {
    const int left = kGrouped ? (first_channel() + 1) * size_ - within_ * V : V;
    return left < V ? left : V;
  }

  // f(thread, part) for the threads whose vectors lie across a grouped channel, shared out among the warp's lanes.
  // part: whether the channel is the first (0) or the next one (1) of the thread's.
  template <class F>
  __device__ __forceinline__ void for_each_thread_of(int channel, F&& f) const {
    const int first = channel * size_ / V, columns = ((channel + 1) * size_ - 1) / V - first + 1;
    for (int i = int(threadIdx.x) % 32; i < rows_ * columns; i += 32) {
      const int column = first + i % columns;
      f(i / columns * run_ + column, column * V / size_ == channel ? 0 : 1);
    }
  }

  // f(places in the tile, offsets in memory) for all vectors of this thread, kSlabInFlight at a time, then one at a
  // time.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    Position at = start();
    const auto batch = [&](auto& places, auto& offsets) {
      constexpr int kCount = sizeof(places) / sizeof(places[0]);
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        places[u] = at.place;
        offsets[u] = at.offset;
        advance(at);
      }
      f(places, offsets);
    };
    int left = count_;
    for (; left >= kSlabInFlight; left -= kSlabInFlight) {
      int places[kSlabInFlight];
      int64_t offsets[kSlabInFlight];
      batch(places, offsets);
    }
    for (; left > 0; --left) {
      int places[1];
      int64_t offsets[1];
      batch(places, offsets);
    }
  }

  // fetch(offset) for a number of vectors, then use(what was fetched, place, offset) for each of these. kRolled: the
  // code of `use` is there once, for what is long.
  template <bool kRolled, class Fetch, class Use>
  __device__ __forceinline__ void for_each_fetched(Fetch&& fetch, Use&& use) const {
    using Fetched = decltype(fetch(int64_t()));
    if constexpr (kRolled) {
      constexpr int kAtOnce = kGrouped && V > 4 ? 1 : 2;  // registers
      Position ahead = start(), at = ahead;
      for (int left = count_; left > 0; left -= kAtOnce) {
        Fetched fetched[kAtOnce];
        const int count = left < kAtOnce ? left : kAtOnce;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (u >= count) break;
          fetched[u] = fetch(ahead.offset);
          advance(ahead);
        }
#pragma unroll 1
        for (int u = 0; u < count; ++u) {
          use(fetched[0], at.place, at.offset);
          advance(at);
#pragma unroll
          for (int later = 1; later < kAtOnce; ++later) fetched[later - 1] = fetched[later];
        }
      }
    } else {
      for_each([&](const auto& places, const auto& offsets) {
        constexpr int kCount = sizeof(places) / sizeof(places[0]);
#pragma unroll
        for (int u = 0; u < kCount; ++u) use(fetch(offsets[u]), places[u], offsets[u]);
      });
    }
  }

 private:
  // Of a vector: its place in the tile, its offset in memory, and its number within the run.
  struct Position {
    int place, within;
    int64_t offset;
  };
  __device__ __forceinline__ Position start() const { return {int(threadIdx.x), within_, offset_}; }
  __device__ __forceinline__ void advance(Position& at) const {
    at.place += step_;
    at.offset += stride_;
    at.within += within_step_;
    if (at.within >= run_) {
      at.within -= run_;
      at.offset += carry_;
    }
  }

  int64_t channel_, offset_, stride_, carry_;
  int channels_, size_, run_, rows_, step_, count_, within_, within_step_;
};

// A value per channel, for each element of a thread's vectors. of(channel), relative to the item's first.
template <int V, bool kGrouped, class S>
struct PerElement {
  S value[kGrouped ? V : 1];

  template <class F>
  __device__ __forceinline__ PerElement(const SlabWalk<V, kGrouped>& walk, F&& of) {
    const int first = walk.first_channel(), boundary = walk.boundary();
    value[0] = of(first);
    if constexpr (kGrouped) {
      const S next = of(boundary < V ? first + 1 : first);
#pragma unroll
      for (int e = 1; e < V; ++e) value[e] = e < boundary ? value[0] : next;
    }
  }
};

}  // namespace fastreg
