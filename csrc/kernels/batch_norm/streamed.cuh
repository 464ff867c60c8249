// Batch norm that streams: any shape, any architecture. Training: two passes over memory, one launch each. Evaluation:
// one.
//
// Algorithm. Pass one reduces every channel to two numbers (moments forward, gradient sums backward), divided over
// `splits` blocks a channel; the block that finishes a channel last merges the partial results, in an order that does
// not depend on which block that is, and computes what pass two needs. Pass two is elementwise. No floating-point
// atomics: results repeat bit for bit.
//
// Thread mapping. Two layouts, one code: a thread moves vectors of V elements and keeps V accumulators.
//   planes  a block works on one channel, blockIdx.x; its threads walk over the channel's vectors. All V elements of a
//           vector belong to the channel.
//   rows    a block works on `columns` neighbouring vectors of channels; blockDim.x / columns threads share a column
//           and walk down the rows. Element e of a vector belongs to channel V column + e.
// blockIdx.y is the split in both. V is 16 bytes' worth where that divides the channel's runs, else 1.
//
// Numerics. fp32 arithmetic for 16- and 32-bit types, fp64 for fp64. Each accumulator shifts by the first value that
// it meets, so that sums of squares lose nothing to a large mean; where that value tells nothing of the others, or
// their squares do not fit, the thread reads them again (see moments.h). Results are merged by Chan's rule.
//
// Bytes per element, s = sizeof(T), of values that are read once for their sums: training forward 3 s (two reads, one
// write), backward 5 s (dy and x read twice, dx written); evaluation 2 s, backward in one launch 3 s, without the
// parameters' gradients 2 s. With an epilogue, see there, the last is 3 s, too.
#pragma once

#include "kernels/batch_norm/arithmetic.h"
#include "kernels/batch_norm/batch_norm.h"
#include "kernels/batch_norm/channel_reduction.cuh"
#include "kernels/batch_norm/channel_walk.cuh"
#include "kernels/batch_norm/epilogue.cuh"
#include "kernels/common/device.h"
#include "kernels/common/memory.h"

namespace fastreg {

// Vectors in flight. Long stages need registers.
template <class E, int kPlain, int kLong = 2, int kLean = kPlain>
constexpr int kStreamed = is_long<E>    ? kLong
                          : is_fused<E> ? kLean
                                        : kPlain;

// ---- Forward ----

template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, is_fused<E> || V > (kRows ? 2 : 4) || sizeof(T) > 4 ? 2 : 3)
    batch_norm_moments_kernel(const T* x, Division d, ChannelStatistics statistics, RunningUpdate running,
                              Workspace workspace, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  const Stages<T, E> stages(epilogue);

  MomentSums<T, V> sums;
  walk.template for_each_fetched<is_long<E>, kStreamed<E, kInFlight>>(
      [&](int64_t offset) { return load(reinterpret_cast<const Access*>(x + offset)); },
      [&](const Access& v, int u) {
        const Values<T, V> values = stages.input(v);
        if (u == 0 && sums.empty()) sums.start(values);
        sums.add(values);
      });

  Moments<A> r[K];
  const unsigned doubtful = sums.moments(r);
  look_again(
      r, doubtful,
      [&](auto&& use) {
        Walk<V, kRows>(d, blockIdx.x, blockIdx.y + unknown_zero(doubtful)).template for_each<1>([&](const auto& at) {
          use(stages.input(load(reinterpret_cast<const Access*>(x + at[0]))));
        });
      },
      [](int k, int e) { return Walk<V, kRows>::is_of(k, e); });

  if (!reduce_grid<A, V, kRows>(r, walk, d, workspace)) return;
  const A factor = running_factor<A>(running);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const Normalisation<A> n = normalisation_of(r[k], statistics.eps);
    write_statistics<T>(n, r[k], d.channels, walk.channel(k), statistics, running, factor);
  }
}

// Blocks of a multiprocessor that a fused kernel has the registers for; 0: what the compiler finds best, without
// spills.
template <int V, bool kRows, class E>
constexpr int kNormalizeBlocks = is_lean_type<E>                            ? 3
                                 : is_fused<E> && V > 1 && (kRows || V > 4) ? (V > 4 ? 2 : 3)
                                                                            : 0;

// num_batches_tracked, if not null, is incremented here: the kernel before has read it, in all its blocks.
template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, kNormalizeBlocks<V, kRows, E>)
    batch_norm_normalize_kernel(const T* x, T* y, Division d, ChannelValues weight, ChannelValues bias,
                                ChannelStatistics statistics, int64_t* num_batches_tracked, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  if (num_batches_tracked != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
    store(num_batches_tracked, load(num_batches_tracked) + 1);

  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  const Stages<T, E> stages(epilogue);
  if (walk.left() == 0) return;
  typename Stages<T, E>::OutputStep steps[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    steps[k] = stages.output_step(forward_step<T>(n, c, weight, bias), c);
  }
  struct Fetched {
    Access x;
    typename Stages<T, E>::template Operands<V> operands;
    int64_t offset;
  };
  walk.template for_each_fetched<is_long<E>, kStreamed<E, kInFlight>>(
      [&](int64_t offset) -> Fetched {
        return {load_streaming(reinterpret_cast<const Access*>(x + offset)),
                stages.template forward_operands<V>(offset), offset};
      },
      [&](const Fetched& f, int) {
        store_streaming(reinterpret_cast<Access*>(y + f.offset), stages.output(f.x, f.operands, f.offset, steps));
      });
}

// ---- Backward ----

// coefficients: [2, channels], mean of dy, and the slope with which dx depends on x - mean. dx, if not null: written
// here, in evaluation. With an epilogue dy and x stand for the gradient of z and for pre_act(x).
template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, is_fused<E> || V > (kRows ? 2 : 4) ? 2 : 3)
    batch_norm_grad_sums_kernel(const T* dy, const T* x, T* dx, Division d, ChannelValues weight,
                                ChannelStatistics statistics, ChannelValues dweight, ChannelValues dbias,
                                compute_t<T>* coefficients, Workspace workspace, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  const Stages<T, E> stages(epilogue);
  typename Stages<T, E>::SumStep n[K] = {};
  if (walk.channel(0) < d.channels)
#pragma unroll
    for (int k = 0; k < K; ++k)
      n[k] = stages.sum_step(read_statistics<T>(statistics, d.channels, walk.channel(k)), walk.channel(k), weight,
                             dx != nullptr);

  GradSums<A> sums[V] = {};
  A slope_sums[K] = {};
  struct Fetched {
    Access x, dy;
    typename Stages<T, E>::template Operands<V> operands;
    int64_t offset;
  };
  walk.template for_each_fetched<is_long<E>, kStreamed<E, kInFlight,
                                                       (V * sizeof(T) < 16 ? 3
                                                        : V > 4            ? 1
                                                                           : 2),
                                                       (V * sizeof(T) < 16 ? 6 : 3)>>(
      [&](int64_t offset) -> Fetched {
        return {load(reinterpret_cast<const Access*>(x + offset)), load(reinterpret_cast<const Access*>(dy + offset)),
                stages.template backward_operands<V>(offset), offset};
      },
      [&](const Fetched& f, int) {
        const Values<T, V> values = stages.input(f.x);
        const Access gradient = stages.argument_gradient(f.dy, values, f.operands, f.offset, n,
                                                         [&](int e, A term) { slope_sums[e % K] += term; });
        stages.store_residual_gradient(f.offset, gradient);
        add_gradients(sums, gradient, values, n);
        if (dx != nullptr)
          store_streaming(reinterpret_cast<Access*>(dx + f.offset),
                          stages.through_input(scaled(gradient, [&](int e) { return stages.scale(n[e % K]); }), f.x));
      });

  typename Stages<T, E>::Totals r[K];
  totals_of<Stages<T, E>>(sums, slope_sums, r);
  if (!reduce_grid<A, V, kRows>(r, walk, d, workspace)) return;

  const A count = A(kRows ? d.length : d.length * V);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    const GradMeans<A> means = means_of(r[k], count, n);
    store(coefficients + c, means.dy);
    store(coefficients + d.channels + c, means.slope);
    write_gradients<T>(r[k], n, c, dweight, dbias);
    stages.write_slope_gradient(r[k], c);
  }
}

// dx may be null where there is an epilogue.
template <class T, int V, bool kRows, class E>
__global__ void __launch_bounds__(256, is_fused<E> ? 2
                                       : V > 4     ? 3
                                                   : 0)
    batch_norm_grad_input_kernel(const T* dy, const T* x, T* dx, Division d, ChannelValues weight,
                                 ChannelStatistics statistics, const compute_t<T>* coefficients, E epilogue) {
  using A = compute_t<T>;
  using Access = Vector<T, V>;
  // In evaluation x is not read, but for an epilogue.
  const bool training = statistics.stats != nullptr;
  Walk<V, kRows> walk(d);
  constexpr int K = Walk<V, kRows>::kChannels;
  const Stages<T, E> stages(epilogue);
  if (walk.left() == 0) return;
  typename Stages<T, E>::InputStep steps[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t c = walk.channel(k);
    const Normalisation<A> n = read_statistics<T>(statistics, d.channels, c);
    GradMeans<A> means = {};
    if (training) means = {load(coefficients + c), load(coefficients + d.channels + c)};
    steps[k] = stages.input_step(n, means, c, weight);
  }
  struct Fetched {
    Access x, dy;
    typename Stages<T, E>::template Operands<V> operands;
    int64_t offset;
  };
  // The steps of eight channels leave few registers: half the vectors in flight, and half as many warps more.
  constexpr int kPlain = K > 4 ? kInFlight / 2 : kInFlight;
  walk.template for_each_fetched<is_long<E>,
                                 kStreamed<E, kPlain, (V * sizeof(T) < 16 ? 3 : 2), (V * sizeof(T) < 16 ? 6 : 3)>>(
      [&](int64_t offset) -> Fetched {
        Access v;
        if (training || is_fused<E>) v = load_streaming(reinterpret_cast<const Access*>(x + offset));
        return {v, load_streaming(reinterpret_cast<const Access*>(dy + offset)),
                stages.template backward_operands<V>(offset), offset};
      },
      [&](const Fetched& f, int) {
        const Values<T, V> values = stages.input(f.x);
        const Access gradient = stages.argument_gradient(f.dy, values, f.operands, f.offset, steps, [](int, A) {});
        stages.store_residual_gradient(f.offset, gradient);
        if (is_fused<E> && dx == nullptr) return;
        const Values<T, V> gradients = training ? input_gradient(gradient, values, steps)
                                                : scaled(gradient, [&](int e) { return steps[e % K].scale; });
        store_streaming(reinterpret_cast<Access*>(dx + f.offset), stages.through_input(gradients, f.x));
      });
}

}  // namespace fastreg
