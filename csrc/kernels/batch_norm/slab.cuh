// Batch norm that keeps what it has read in shared memory: training of [planes, channels, size], one launch, each
// tensor moved once.
//
// Algorithm. An item is a channel, or some adjacent ones whose runs in a plane together are a multiple of 16 bytes. A
// block, or a cluster of blocks, copies the item's vectors to shared memory, reduces them to one result per channel
// (moments forward, gradient sums backward), and passes over them a second time, elementwise. With two buffers the next
// item is copied while this one is processed. Partial results are merged in an order fixed by their places: threads of
// a warp, warps, blocks of a cluster. No atomics on values: results repeat bit for bit.
//
// Thread mapping. An item's vectors are numbered along its planes; each block of a cluster takes an equal share of
// consecutive ones, each thread every step-th of the share: the same ones when it copies, reduces and writes, so that
// no barrier guards the tile. Where channels are grouped, the step is a multiple of the run: all vectors of a thread
// lie across the same one or two channels.
//
// Numerics. fp32, as in streamed.cuh.
//
// Bytes per element, s = sizeof(T): forward 2 s, backward 3 s. With an epilogue the gradient of z takes dy's place in
// the tile: what that depends on is read once.
//
// dy is in shared memory, beside x. In registers it would leave room for larger channels where there are no clusters;
// but the kernels with the most to gain, of grouped channels, have none to spare, and loops over registers have to be
// unrolled, whatever they compute.
#pragma once

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/batch_norm.h"
#include "kernels/batch_norm/epilogue.cuh"
#include "kernels/batch_norm/slab.h"
#include "kernels/batch_norm/slab_walk.cuh"
#include "kernels/common/async_copy.h"
#include "kernels/common/cluster.h"
#include "kernels/common/device.h"
#include "kernels/common/grid_sync.h"
#include "kernels/common/memory.h"
#include "kernels/common/vector.h"
#include "kernels/common/warp_reduction.cuh"

namespace fastreg {

// Shared memory: entries of threads or warps, partial results of the block for its cluster, each channel's
// elementwise step; then the tiles, [buffers][tensors][tile_vectors].
template <class R, class Step>
struct SlabMemory {
  R *entries, *partials;
  Step* steps;
  void* tiles;

  __device__ SlabMemory(unsigned char* shared, const SlabDivision& d, bool grouped) {
    const auto at = [&](int64_t bytes) { return shared + bytes; };
    const int64_t entry_bytes = kSlabResultBytes * slab_entries(int(blockDim.x), grouped);
    entries = reinterpret_cast<R*>(at(0));
    partials = reinterpret_cast<R*>(at(entry_bytes));
    steps = reinterpret_cast<Step*>(at(entry_bytes + 2 * kSlabResultBytes * d.group));
    tiles = at(slab_scratch_bytes(int(blockDim.x), d.group, grouped));
    static_assert(sizeof(R) <= kSlabResultBytes && sizeof(Step) <= kSlabStepBytes, "see slab_scratch_bytes");
  }
};

// From each thread's results for its first and its next channel to the item's: finish(channel, result), by one thread
// of each block, and a barrier. The partials are the block's own until the next call but one.
template <int V, bool kGrouped, class R, class F>
__device__ __forceinline__ void reduce_item(const SlabWalk<V, kGrouped>& walk, const R (&own)[2], R* entries,
                                            R* partials, F&& finish) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int ranks = int(cluster_size());
  if constexpr (kGrouped) {
    entries[threadIdx.x] = own[0];
    entries[blockDim.x + threadIdx.x] = own[1];
  } else {
    const R r = merge_lanes(own[0]);
    if (lane == 0) entries[warp] = r;
  }
  __syncthreads();
  for (int c = warp; c < walk.channels(); c += warps) {
    R r = {};
    if constexpr (kGrouped) {
      walk.for_each_thread_of(c, [&](int thread, int part) { r = merge(r, entries[part * int(blockDim.x) + thread]); });
    } else if (lane < warps) {
      r = entries[lane];
    }
    r = merge_lanes(r);
    if (lane != 0) continue;
    if (ranks > 1) {
      partials[c] = r;
    } else {
      finish(c, r);
    }
  }
  if (ranks > 1) {
    // The warps that have partials to show, and read those of the others, alone wait until their stores are done.
    if (warp < walk.channels()) {
      cluster_arrive();
    } else {
      cluster_arrive_relaxed();
    }
    cluster_wait();
    for (int c = warp; c < walk.channels(); c += warps) {
      R r = {};
      if (lane < ranks) r = cluster_peer(partials, unsigned(lane))[c];
      r = merge_lanes(r);
      if (lane == 0) finish(c, r);
    }
  }
  __syncthreads();
}

// The pipeline over a cluster's items. copy(walk, tile) issues an item's copies; process(walk, tile, parity), with the
// copies of this thread complete, does the rest.
template <int V, bool kGrouped, class Access, class Copy, class Process>
__device__ __forceinline__ void for_each_item(const SlabDivision& d, Access* tiles, int tensors, Copy&& copy,
                                              Process&& process) {
  const int ranks = int(cluster_size());
  const int stride = int(gridDim.x) / ranks, first = int(blockIdx.x) / ranks;
  const int64_t buffer = int64_t(tensors) * d.tile_vectors;
  const auto fetch = [&](int item, int into) {
    if (item < d.items) copy(SlabWalk<V, kGrouped>(d, item), tiles + into * buffer);
    copy_async_commit();
  };
  fetch(first, 0);
  int parity = 0;
  for (int item = first; item < d.items; item += stride, parity ^= 1) {
    const int current = d.buffers == 2 ? parity : 0;
    if (d.buffers == 2) {
      fetch(item + stride, parity ^ 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    process(SlabWalk<V, kGrouped>(d, item), tiles + current * buffer, parity);
    if (d.buffers == 1) fetch(item + stride, 0);
  }
  copy_async_wait<0>();
  if (ranks > 1) {  // until the peers have read this block's shared memory
    cluster_arrive_relaxed();
    cluster_wait();
  }
}

// ---- Forward ----

// Sums of a thread's elements, relative to the first value of each of its channels, which are two at most.
template <class T, int V, bool kGrouped>
class SlabMoments {
 public:
  using A = compute_t<T>;

  // input(v): the values of the vector.
  template <bool kRolled, class Input>
  __device__ __forceinline__ void gather(const SlabWalk<V, kGrouped>& walk, const Vector<T, V>* tile, Input&& input) {
    if (count_ == 0) return;
    const Values<T, V> first = input(tile[threadIdx.x]);
#pragma unroll
    for (int e = 0; e < V; ++e) shift_[e] = !kGrouped || e < boundary_ ? first.value[0] : first.value[V - 1];
    walk.template for_each_fetched<kRolled>([](int64_t) { return 0; },
                                            [&](int, int place, int64_t) { add(input(tile[place])); });
  }

  __device__ __forceinline__ explicit SlabMoments(const SlabWalk<V, kGrouped>& walk)
      : boundary_(walk.boundary()), count_(walk.count()) {}

  // Of its first and its next channel.
  __device__ __forceinline__ unsigned moments(Moments<A> (&r)[2]) const {
    A sum[2] = {}, squares[2] = {};
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const bool next = kGrouped && e >= boundary_;
      sum[0] += next ? A(0) : sum_[e];
      squares[0] += next ? A(0) : squares_[e];
      sum[1] += next ? sum_[e] : A(0);
      squares[1] += next ? squares_[e] : A(0);
    }
    r[0] = r[1] = {};
    if (count_ == 0) return 0;
    unsigned doubtful = 0;
    const auto result = [&](int i, int elements, A shift) {
      const A count = A(count_ * elements);
      r[i] = moments_from_sums(count, shift, sum[i], squares[i], A(1));
      doubtful |= unsigned(is_doubtful(count, sum[i], squares[i])) << i;
    };
    result(0, boundary_, shift_[0]);
    if (boundary_ < V) result(1, V - boundary_, shift_[V - 1]);
    return doubtful;
  }
  __device__ __forceinline__ bool is_of(int i, int e) const { return (i == 1) == (kGrouped && e >= boundary_); }

 private:
  __device__ __forceinline__ void add(const Values<T, V>& x) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A difference = x.value[e] - shift_[kGrouped ? e : 0];
      sum_[e] += difference;
      squares_[e] = multiply_add(difference, difference, squares_[e]);
    }
  }

  A shift_[V] = {}, sum_[V] = {}, squares_[V] = {};
  int boundary_, count_;
};

template <class T, int V, bool kGrouped, class E>
__global__ void __launch_bounds__(kSlabThreads, 1)
    batch_norm_slab_train_kernel(const T* x, T* y, SlabDivision d, ChannelValues weight, ChannelValues bias,
                                 ChannelStatistics statistics, RunningUpdate running, unsigned* ticket, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  using Walk = SlabWalk<V, kGrouped>;
  FASTREG_DYNAMIC_SHARED(unsigned char, shared);
  using Step = typename Stages<T, E>::OutputStep;
  const SlabMemory<Moments<A>, Step> memory(shared, d, kGrouped);
  const Stages<T, E> stages(epilogue);
  const A factor = running_factor<A>(running);

  const auto copy = [&](const Walk& walk, Access* tile) {
    walk.for_each([&](const auto& places, const auto& offsets) {
      constexpr int kCount = sizeof(places) / sizeof(places[0]);
#pragma unroll
      for (int u = 0; u < kCount; ++u) copy_async<16>(tile + places[u], x + offsets[u]);
    });
  };
  for_each_item<V, kGrouped>(
      d, static_cast<Access*>(memory.tiles), 1, copy, [&](const Walk& walk, const Access* tile, int parity) {
        Moments<A> own[2];
        SlabMoments<T, V, kGrouped> sums(walk);
        sums.template gather<is_fused<E>>(walk, tile, [&](const Access& v) { return stages.input(v); });
        const unsigned doubtful = sums.moments(own);
        look_again(
            own, doubtful,
            [&](auto&& use) {
              walk.template for_each_fetched<true>([](int64_t) { return 0; },
                                                   [&](int, int place, int64_t) { use(stages.input(tile[place])); });
            },
            [&](int i, int e) { return sums.is_of(i, e); });
        reduce_item(walk, own, memory.entries, memory.partials + parity * d.group, [&](int c, const Moments<A>& total) {
          const int64_t channel = walk.channel() + c;
          const Normalisation<A> n = normalisation_of(total, statistics.eps);
          memory.steps[c] = stages.output_step(forward_step<T>(n, channel, weight, bias), channel);
          if (cluster_rank() == 0) write_statistics<T>(n, total, d.channels, channel, statistics, running, factor);
        });
        const PerElement<V, kGrouped, Step> steps(walk, [&](int c) { return memory.steps[c]; });
        walk.template for_each_fetched<is_fused<E>>(
            [&](int64_t offset) { return stages.template forward_operands<V>(offset); },
            [&](const auto& operands, int place, int64_t offset) {
              store_streaming(reinterpret_cast<Access*>(y + offset),
                              stages.output(tile[place], operands, offset, steps.value));
            });
      });

  // The count is incremented when all blocks have read it, if they do.
  if (running.num_batches_tracked == nullptr) return;
  const bool last = running.cumulative ? is_last_block(ticket, gridDim.x) : blockIdx.x == 0;
  if (last && threadIdx.x == 0) store(running.num_batches_tracked, load(running.num_batches_tracked) + 1);
}

// ---- Backward ----

template <class T, int V, bool kGrouped, class E>
__global__ void __launch_bounds__(kSlabThreads, 1)
    batch_norm_slab_backward_kernel(const T* dy, const T* x, T* dx, SlabDivision d, ChannelValues weight,
                                    ChannelStatistics statistics, ChannelValues dweight, ChannelValues dbias,
                                    E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  using Walk = SlabWalk<V, kGrouped>;
  FASTREG_DYNAMIC_SHARED(unsigned char, shared);
  using Totals = typename Stages<T, E>::Totals;
  const SlabMemory<Totals, BackwardStep<A>> memory(shared, d, kGrouped);
  const Stages<T, E> stages(epilogue);
  const A count = A(int64_t(d.planes) * d.size);

  const auto copy = [&](const Walk& walk, Access* tile) {
    walk.for_each([&](const auto& places, const auto& offsets) {
      constexpr int kCount = sizeof(places) / sizeof(places[0]);
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        copy_async<16>(tile + places[u], x + offsets[u]);
        copy_async<16>(tile + d.tile_vectors + places[u], dy + offsets[u]);
      }
    });
  };
  for_each_item<V, kGrouped>(
      d, static_cast<Access*>(memory.tiles), 2, copy, [&](const Walk& walk, Access* tile, int parity) {
        const Access* const tile_x = tile;
        Access* const tile_dy = tile + d.tile_vectors;
        const auto statistics_of = [&](int c) {
          return read_statistics<T>(statistics, d.channels, walk.channel() + c);
        };
        Totals own[2];
        {
          const PerElement<V, kGrouped, typename Stages<T, E>::SumStep> n(
              walk, [&](int c) { return stages.sum_step(statistics_of(c), walk.channel() + c, weight, false); });
          GradSums<A> sums[V] = {};
          A slope_sums[2] = {};
          const int boundary = walk.boundary();
          walk.template for_each_fetched<is_fused<E>>(
              [&](int64_t offset) { return stages.template backward_operands<V>(offset); },
              [&](const auto& operands, int place, int64_t offset) {
                const Values<T, V> values = stages.input(tile_x[place]);
                const Access gradient =
                    stages.argument_gradient(tile_dy[place], values, operands, offset, n.value, [&](int e, A term) {
                      const bool next = kGrouped && e >= boundary;
                      slope_sums[0] += next ? A(0) : term;
                      slope_sums[1] += next ? term : A(0);
                    });
                if constexpr (is_fused<E>) {
                  stages.store_residual_gradient(offset, gradient);
                  tile_dy[place] = gradient;
                }
                add_gradients(sums, gradient, values, n.value);
              });
          GradSums<A> of_first = {}, of_next = {};
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const bool next = kGrouped && e >= boundary;
            of_first = merge(of_first, next ? GradSums<A>{} : sums[e]);
            of_next = merge(of_next, next ? sums[e] : GradSums<A>{});
          }
          own[0] = stages.total(of_first, slope_sums[0]);
          own[1] = stages.total(of_next, slope_sums[1]);
        }
        reduce_item(walk, own, memory.entries, memory.partials + parity * d.group, [&](int c, const Totals& sums) {
          const int64_t channel = walk.channel() + c;
          const Normalisation<A> n = statistics_of(c);
          memory.steps[c] = backward_step<T>(n, means_of(sums, count, n), channel, weight);
          if (cluster_rank() != 0) return;
          write_gradients<T>(sums, n, channel, dweight, dbias);
          stages.write_slope_gradient(sums, channel);
        });
        if (dx == nullptr) return;
        const PerElement<V, kGrouped, BackwardStep<A>> steps(walk, [&](int c) { return memory.steps[c]; });
        walk.template for_each_fetched<is_fused<E>>(
            [](int64_t) { return 0; },
            [&](int, int place, int64_t offset) {
              const Values<T, V> values = stages.input(tile_x[place]);
              store_streaming(reinterpret_cast<Access*>(dx + offset),
                              stages.through_input(input_gradient(tile_dy[place], values, steps.value), tile_x[place]));
            });
      });
}

}  // namespace fastreg
