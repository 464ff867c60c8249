// Batch norm by teams of blocks that wait for each other: one launch, each tensor read from memory once.
//
// Algorithm. A team of `splits` blocks takes groups of neighbouring channels, one after the other. Each block gathers
// the moments (backward: gradient sums) of its share of the group, publishes them, and when all of the team have done
// so merges them: every block by itself, in the same fixed order, so all have the same totals, bit for bit. Of large
// teams, sets are merged before, each by one block: what every block reads would grow with the square. Then it
// normalises its share. As much of the share as fits has stayed in shared memory; the rest, if there is any, is read a
// second time, from L2: the plan sees to it that all such rests in flight are there. With two buffers a block gathers
// its next group before it waits for the present one, so that the wait costs nothing.
//
// All blocks of a team are resident at once (a cooperative launch), and a block publishes before it waits: nothing can
// wait for ever. There is a counter for each group, and no floating-point atomic: results repeat bit for bit.
//
// Thread mapping. As in streamed.cuh, with the splits of a group in the blocks of one team. A thread keeps the very
// vectors that it normalises later, in slots of its own: no barrier, no bank conflict.
//
// Bytes per element, s = sizeof(T): forward 2 s (one read, one write), backward 3 s (dy and x read, dx written);
// besides, of what is not kept, s and 2 s from L2. With an epilogue, see there, the gradient of z takes dy's place: in
// shared memory, or where it is not kept there in dx, until that is written. What it depends on is read once, and
// backward moves 3 s through L2.
#pragma once

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/channel_reduction.cuh"
#include "kernels/batch_norm/channel_walk.cuh"
#include "kernels/batch_norm/epilogue.cuh"
#include "kernels/batch_norm/grid_plan.h"
#include "kernels/common/device.h"
#include "kernels/common/grid_sync.h"
#include "kernels/common/memory.h"

namespace fastreg {

struct GridDivision {
  Division of;
  int64_t groups;
  int splits;   // blocks of a team
  int kept;     // vectors of each tensor that a thread keeps
  int buffers;  // groups in flight
};

// The parts of a block's shared memory.
template <class R, class Step>
struct GridScratch {
  static_assert(sizeof(R) <= kGridResultBytes && sizeof(Step) <= kGridStepBytes, "the plan counts on it");
  unsigned char* shared;
  int channels_of_thread, channels_of_group;

  __device__ __forceinline__ R* results() const { return reinterpret_cast<R*>(shared); }
  __device__ __forceinline__ Step* steps() const {
    const int threads = computed_here(int(blockDim.x));
    return reinterpret_cast<Step*>(shared + grid_results_bytes(threads, channels_of_thread));
  }
  __device__ __forceinline__ unsigned char* kept() const {
    const int threads = computed_here(int(blockDim.x));
    return shared + grid_scratch_bytes(threads, channels_of_thread, channels_of_group);
  }
};

// gather(group, buffer) and finish(group, buffer) for all groups of this block's team, buffers - 1 groups apart.
template <class Gather, class Finish>
__device__ __forceinline__ void for_each_group(const GridDivision& d, Gather&& gather, Finish&& finish) {
  const int behind = d.buffers - 1;
  for (int step = 0;; ++step) {
    const int splits = computed_here(d.splits);
    const int64_t team = int(blockIdx.x) / splits, teams = int(gridDim.x) / splits;
    const int64_t next = team + step * teams, present = next - behind * teams;
    if (next < d.groups) gather(next, step % d.buffers);
    if (present >= d.groups) return;
    if (step >= behind) finish(present, (step - behind) % d.buffers);
  }
}

// What one block of a team does with others: publish, and collect.
template <class T, int V, bool kRows, class E>
struct Team {
  using A = compute_t<T>;
  using Channels = Walk<V, kRows>;
  static constexpr int K = Channels::kChannels;

  const GridDivision& d;
  Workspace workspace;

  __device__ __forceinline__ int split() const { return computed_here(int(blockIdx.x)) % d.splits; }
  __device__ __forceinline__ int column() const { return computed_here(int(threadIdx.x)) % d.of.columns; }
  __device__ __forceinline__ int width() const { return d.of.columns * K; }  // channels of a group

  template <class R>
  __device__ Packed<R>* partial(int64_t of, int64_t channel) const {
    return static_cast<Packed<R>*>(workspace.partials) + of * d.of.channels + channel;
  }

  // This block's result for the group, from its threads' r.
  template <class R>
  __device__ __forceinline__ void publish(R (&r)[K], R* shared, const Channels& walk, int64_t group) const {
    reduce_columns(r, shared, d.of.columns);
    if (int(threadIdx.x) < d.of.columns && walk.channel(0) < d.of.channels)
#pragma unroll
      for (int k = 0; k < K; ++k) store(partial<R>(split(), walk.channel(k)), pack(r[k]));
    if (d.splits > 1) {
      // Where there are many, the block that publishes last of a set merges its set's, and arrives for it.
      const int splits = computed_here(d.splits), each = grid_set(splits, kRows), set = split() / each,
                first = set * each;
      unsigned* const tickets = workspace.tickets + group * grid_tickets(splits, kRows);
      if (each > 1) {
        const int in_set = splits - first < each ? splits - first : each;
        if (!is_last_block(tickets + 1 + set, unsigned(in_set))) return;
        const R total = merged<kAhead, R>(shared, group, first, in_set, 1);
        const int64_t channel = group * width() + int(threadIdx.x);
        if (int(threadIdx.x) < width() && channel < d.of.channels) store(partial<R>(first, channel), pack(total));
      }
      grid_arrive(tickets);
    } else {
      __syncthreads();  // before the shared memory is written again
    }
  }

  // The team's result: for channel group * width() + threadIdx.x in the first `width` threads, of no use in the others.
  template <class R>
  __device__ __forceinline__ R collect(R* shared, int64_t group) const {
    const int splits = computed_here(d.splits), each = grid_set(splits, kRows), sets = (splits + each - 1) / each;
    if (d.splits > 1) {
      grid_wait(workspace.tickets + group * grid_tickets(splits, kRows), unsigned(sets));
    } else {
      __syncthreads();  // the steps of the group before have been read
    }
    return merged<kAhead, R>(shared, group, 0, sets, each);
  }

  // Partial results that a thread asks for at once, as far as there are registers. It reads few, one after the other.
  static constexpr int kAhead = is_fused<E> ? 1 : 4;

  // Likewise, of `number` results of `each` splits, from split `first` on.
  template <int kAtOnce, class R>
  __device__ __forceinline__ R merged(R* shared, int64_t group, int first, int number, int each) const {
    const int thread = computed_here(int(threadIdx.x));
    const int64_t channel = group * width() + thread % width();
    R total[1] = {};
    if (channel < d.of.channels) {
      const int step = computed_here(int(blockDim.x)) / width();
#pragma unroll 1
      for (int i = thread / width(); i < number; i += kAtOnce * step) {
        Packed<R> others[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u)
          if (i + u * step < number) others[u] = load_coherent(partial<R>(first + (i + u * step) * each, channel));
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (i + u * step >= number) break;
          R other;
          unpack(others[u], A(d.of.length_of(first + (i + u * step) * each, each) * (kRows ? 1 : V)), other);
          total[0] = merge(total[0], other);
        }
      }
    }
    reduce_columns(total, shared, width());
    return total[0];
  }

  // The steps of this thread's channels, which the first `width` threads have written.
  template <class Step>
  __device__ __forceinline__ void read_steps(const Step* shared, Step (&steps)[K]) const {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) steps[k] = shared[column() * K + k];
  }

  // Where this thread keeps its vectors of tensor number `tensor` of `tensors`, blockDim.x apart.
  __device__ __forceinline__ Vector<T, V>* slots(unsigned char* kept, int buffer, int tensors, int tensor) const {
    const int64_t row = (int64_t(buffer) * tensors + tensor) * d.kept;
    return reinterpret_cast<Vector<T, V>*>(kept) + row * int(blockDim.x) + int(threadIdx.x);
  }
};

// Vectors in flight. Fused stages need registers.
template <class E, int kPlain, int kFused = 2>
constexpr int kTogether = is_fused<E> ? kFused : kPlain;

template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, 2)
    batch_norm_grid_train_kernel(const T* x, T* y, GridDivision d, ChannelValues weight, ChannelValues bias,
                                 ChannelStatistics statistics, RunningUpdate running, Workspace workspace, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  using Channels = Walk<V, kRows>;
  constexpr int K = Channels::kChannels;
  FASTREG_DYNAMIC_SHARED(unsigned char, shared);
  const Team<T, V, kRows, E> team{d, workspace};
  const GridScratch<Moments<A>, ForwardStep<A>> scratch{shared, K, team.width()};
  const Stages<T, E> stages(epilogue);
  const A factor = running_factor<A>(running);

  const auto gather = [&](int64_t group, int buffer) {
    Channels walk(d.of, group, team.split());
    Access* const slots = team.slots(scratch.kept(), buffer, 1, 0);
    MomentSums<T, V> sums;
    struct Fetched {
      Access x;
      int number;
    };
    int next = 0;
    walk.template for_each_fetched<is_fused<E>, kTogether<E, kInFlight, (V > 4 ? 3 : kInFlight)>>(
        [&](int64_t offset) -> Fetched {
          const auto* const from = reinterpret_cast<const Access*>(x + offset);
          const int number = next++;
          return {number < d.kept ? load_streaming(from) : load(from), number};
        },
        [&](const Fetched& f, int) {
          const Values<T, V> values = stages.input(f.x);
          if (f.number == 0) sums.start(values);
          sums.add(values);
          if (f.number < d.kept) store(slots + f.number * int(blockDim.x), f.x);
        });
    Moments<A> r[K];
    const unsigned doubtful = sums.moments(r);
    look_again(
        r, doubtful,
        [&](auto&& use) {
          Channels(d.of, group, team.split() + unknown_zero(doubtful)).template for_each<1>([&](const auto& at) {
            use(stages.input(load(reinterpret_cast<const Access*>(x + at[0]))));
          });
        },
        [](int k, int e) { return Channels::is_of(k, e); });
    team.publish(r, scratch.results(), walk, group);
  };

  const auto finish = [&](int64_t group, int buffer) {
    const Moments<A> total = team.collect(scratch.results(), group);
    const int64_t c = group * team.width() + int(threadIdx.x);
    if (int(threadIdx.x) < team.width() && c < d.of.channels) {
      const Normalisation<A> n = normalisation_of(total, statistics.eps);
      if (team.split() == 0) write_statistics<T>(n, total, d.of.channels, c, statistics, running, factor);
      scratch.steps()[threadIdx.x] = forward_step<T>(n, c, weight, bias);
    }
    ForwardStep<A> steps[K];
    team.read_steps(scratch.steps(), steps);

    Channels walk(d.of, group, team.split());
    const Access* const slots = team.slots(scratch.kept(), buffer, 1, 0);
    struct Fetched {
      Access x;
      typename Stages<T, E>::template Operands<V> operands;
      int64_t offset;
    };
    int next = 0;
    walk.template for_each_fetched<is_fused<E>, kTogether<E, kInFlight>>(
        [&](int64_t offset) -> Fetched {
          const int number = next++;
          return {number < d.kept ? load(slots + number * int(blockDim.x))
                                  : load_streaming(reinterpret_cast<const Access*>(x + offset)),
                  stages.template forward_operands<V>(offset), offset};
        },
        [&](const Fetched& f, int) {
          store_streaming(reinterpret_cast<Access*>(y + f.offset), stages.output(f.x, f.operands, f.offset, steps));
        });
  };
  for_each_group(d, gather, finish);

  if (running.num_batches_tracked == nullptr) return;
  // Whoever reads it has done so: the blocks all, or none but the one that writes.
  const bool last = running.cumulative
                        ? is_last_block(workspace.tickets + d.groups * grid_tickets(d.splits, kRows), gridDim.x)
                        : blockIdx.x == 0;
  if (last && threadIdx.x == 0) store(running.num_batches_tracked, load(running.num_batches_tracked) + 1);
}

template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, 2)
    batch_norm_grid_backward_kernel(const T* dy, const T* x, T* dx, GridDivision d, ChannelValues weight,
                                    ChannelStatistics statistics, ChannelValues dweight, ChannelValues dbias,
                                    Workspace workspace, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  using Channels = Walk<V, kRows>;
  constexpr int K = Channels::kChannels;
  constexpr int kAtOnce = kTogether<E, (K > 4 ? kInFlight / 2 : kInFlight), (V > 4 ? 1 : 2)>;
  FASTREG_DYNAMIC_SHARED(unsigned char, shared);
  const Team<T, V, kRows, E> team{d, workspace};
  const GridScratch<GradSums<A>, BackwardStep<A>> scratch{shared, K, team.width()};
  const Stages<T, E> stages(epilogue);

  const auto gather = [&](int64_t group, int buffer) {
    Channels walk(d.of, group, team.split());
    typename Stages<T, E>::SumStep n[K] = {};
    if (walk.channel(0) < d.of.channels)
#pragma unroll
      for (int k = 0; k < K; ++k)
        n[k] = stages.sum_step(read_statistics<T>(statistics, d.of.channels, walk.channel(k)), walk.channel(k), weight,
                               false);
    Access* const x_slots = team.slots(scratch.kept(), buffer, 2, 0);
    Access* const gradient_slots = team.slots(scratch.kept(), buffer, 2, 1);
    GradSums<A> sums[V] = {};
    struct Fetched {
      Access x, dy;
      typename Stages<T, E>::template Operands<V> operands;
      int64_t offset;
      int number;
    };
    int next = 0;
    walk.template for_each_fetched<is_fused<E>, kAtOnce>(
        [&](int64_t offset) -> Fetched {
          const auto* const from_x = reinterpret_cast<const Access*>(x + offset);
          const auto* const from_dy = reinterpret_cast<const Access*>(dy + offset);
          const int number = next++;
          const bool keeps = number < d.kept;
          return {keeps ? load_streaming(from_x) : load(from_x),
                  keeps || is_fused<E> ? load_streaming(from_dy) : load(from_dy),
                  stages.template backward_operands<V>(offset), offset, number};
        },
        [&](const Fetched& f, int) {
          const Values<T, V> values = stages.input(f.x);
          const Access gradient = stages.argument_gradient(f.dy, values, f.operands, f.offset, n, [](int, A) {});
          stages.store_residual_gradient(f.offset, gradient);
          add_gradients(sums, gradient, values, n);
          if (f.number < d.kept) {
            store(x_slots + f.number * int(blockDim.x), f.x);
            store(gradient_slots + f.number * int(blockDim.x), gradient);
          } else if (is_fused<E> && dx != nullptr) {
            store(reinterpret_cast<Access*>(dx + f.offset), gradient);
          }
        });
    GradSums<A> r[K] = {};
#pragma unroll
    for (int e = 0; e < V; ++e) r[e % K] = merge(r[e % K], sums[e]);
    team.publish(r, scratch.results(), walk, group);
  };

  const auto finish = [&](int64_t group, int buffer) {
    const A count = A(d.of.length * computed_here(kRows ? 1 : V));
    const GradSums<A> total = team.collect(scratch.results(), group);
    const int64_t c = group * team.width() + int(threadIdx.x);
    if (int(threadIdx.x) < team.width() && c < d.of.channels) {
      const Normalisation<A> n = read_statistics<T>(statistics, d.of.channels, c);
      if (team.split() == 0) write_gradients<T>(total, n, c, dweight, dbias);
      scratch.steps()[threadIdx.x] = backward_step<T>(n, means_of(total, count, n), c, weight);
    }
    BackwardStep<A> steps[K];
    team.read_steps(scratch.steps(), steps);
    if (dx == nullptr) return;

    Channels walk(d.of, group, team.split());
    const Access* const x_slots = team.slots(scratch.kept(), buffer, 2, 0);
    const Access* const gradient_slots = team.slots(scratch.kept(), buffer, 2, 1);
    const T* const gradients = is_fused<E> ? dx : dy;
    struct Fetched {
      Access x, gradient;
      int64_t offset;
    };
    int next = 0;
    walk.template for_each_fetched<is_fused<E>, kAtOnce>(
        [&](int64_t offset) -> Fetched {
          const int number = next++;
          if (number < d.kept)
            return {load(x_slots + number * int(blockDim.x)), load(gradient_slots + number * int(blockDim.x)), offset};
          return {load_streaming(reinterpret_cast<const Access*>(x + offset)),
                  load_streaming(reinterpret_cast<const Access*>(gradients + offset)), offset};
        },
        [&](const Fetched& f, int) {
          const Values<T, V> values = stages.input(f.x);
          store_streaming(reinterpret_cast<Access*>(dx + f.offset),
                          stages.through_input(input_gradient(f.gradient, values, steps), f.x));
        });
  };
  for_each_group(d, gather, finish);
}

}  // namespace fastreg
