// Kernels to test the executor with. Each is right with Bug::none; every other value plants one mistake.
#pragma once

#include "kernels/common/async_copy.h"
#include "kernels/common/cluster.h"
#include "kernels/common/device.h"
#include "kernels/common/grid_sync.h"
#include "kernels/common/memory.h"

namespace selftest {

using fastreg::kVector;
using fastreg::load;
using fastreg::store;
using fastreg::Vector;

enum class Bug {
  none,
  // block reduction
  no_barrier_before_partials,
  no_barrier_after_partials,
  no_barrier_before_total,
  early_exit,
  one_past_shared_read,
  one_past_shared_write,
  one_past_global_read,
  one_past_global_write,
  divergent_barrier,
  wrong_shuffle_mask,
  mask_of_exited_lanes,
  unwritten_output,
  uninitialised_shared,
  // streaming copy
  misaligned_access,
  half_used_sectors,
  missing_tail,
  // cluster
  no_cluster_barrier_before_read,
  relaxed_cluster_barrier_before_read,
  no_cluster_barrier_before_exit,
  no_cluster_wait,
  // grid
  no_grid_barrier,
  grid_barrier_without_cooperation,
  ticket_without_fence,
  ticket_not_counted,
  race_between_blocks,
  // asynchronous copies
  no_copy_wait,
  copy_wait_too_weak,
  no_barrier_after_copy,
  no_barrier_before_overwrite,
  no_transaction_wait,
  wrong_transaction_parity,
  too_few_transaction_bytes,
  no_barrier_after_transaction_init,
  no_wait_before_reuse,
  no_wait_before_exit,
  // dependent launch
  no_wait_for_previous_kernel,
};

// Sum over the warp, in every lane.
template <Bug bug>
__device__ __forceinline__ float warp_sum(float value) {
  constexpr unsigned kAll = bug == Bug::wrong_shuffle_mask ? 0x7FFFFFFFu : 0xFFFFFFFFu;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

// Sum over the block, in every thread. scratch: one float per warp; it may still be read from the last call.
template <Bug bug>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum<bug>(value);
  if constexpr (bug != Bug::no_barrier_before_partials) __syncthreads();
  if constexpr (bug == Bug::one_past_shared_write) {
    if (lane == 0) scratch[warp + 1] = value;
    if (threadIdx.x == 0) scratch[0] = value;
  } else {
    if (lane == 0) scratch[warp] = value;
  }
  if constexpr (bug == Bug::divergent_barrier) {
    if (warp == 0) __syncthreads();
  } else if constexpr (bug != Bug::no_barrier_after_partials) {
    __syncthreads();
  }
  if (warp == 0) {
    constexpr unsigned kExtra = bug == Bug::one_past_shared_read ? 1 : 0;
    float total = lane < warps + kExtra ? scratch[lane] : 0.0f;
    total = warp_sum<bug>(total);
    if (lane == 0) scratch[0] = total;
  }
  if constexpr (bug != Bug::no_barrier_before_total) __syncthreads();
  return scratch[0];
}

// y = (x - mean) / sum |x - mean| by rows of n, one block a row. Two reductions, each used by all threads.
template <Bug bug>
__global__ void normalise_rows(const float* x, float* y, int n) {
  FASTREG_DYNAMIC_SHARED(float, scratch);
  const float* row = x + int64_t(blockIdx.x) * n;
  float* out = y + int64_t(blockIdx.x) * n;
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  if constexpr (bug == Bug::early_exit) {
    if (thread >= n) return;
  }
  const int end = n + (bug == Bug::one_past_global_read && blockIdx.x + 1 == gridDim.x ? 1 : 0);
  float sum = 0.0f;
  for (int i = thread; i < end; i += threads) sum += load(row + i);
  if constexpr (bug == Bug::uninitialised_shared) sum += scratch[0] * 0.0f;
  const float mean = block_sum<bug>(sum, scratch) / float(n);
  float deviation = 0.0f;
  for (int i = thread; i < n; i += threads) deviation += fabsf(load(row + i) - mean);
  const float scale = block_sum<bug>(deviation, scratch);
  const int written = n + (bug == Bug::unwritten_output ? -1 : bug == Bug::one_past_global_write ? 1 : 0);
  for (int i = thread; i < written; i += threads) store(out + i, (load(row + (i < n ? i : 0)) - mean) / scale);
}

// The block's sum when its size is no multiple of the warp: lanes past the end leave before the others vote.
template <Bug bug>
__global__ void count_positive(const float* x, unsigned* count, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (bug == Bug::mask_of_exited_lanes && i >= n) return;
  const bool positive = i < n && load(x + i) > 0.0f;
  const unsigned votes = __ballot_sync(0xFFFFFFFFu, positive);
  if (threadIdx.x % 32 == 0) atomicAdd(count, unsigned(__popc(votes)));
}

// y = x, with 16-byte accesses and a tail of single elements.
template <Bug bug, class T>
__global__ void copy(const T* x, T* y, int64_t n) {
  constexpr int V = kVector<T>;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  const int64_t vectors = n / V;
  const int64_t shift = bug == Bug::misaligned_access ? 1 : 0;
  const auto* from = reinterpret_cast<const Vector<T, V>*>(x + shift);
  auto* to = reinterpret_cast<Vector<T, V>*>(y + shift);
  for (int64_t i = thread; i < vectors - shift; i += threads) {
    if constexpr (bug == Bug::half_used_sectors) {
      // Even vectors first, then odd ones: every request uses half of each sector.
      const int64_t half = (vectors + 1) / 2;
      const int64_t j = i < half ? 2 * i : 2 * (i - half) + 1;
      store(to + j, load(from + j));
    } else {
      store(to + i, load(from + i));
    }
  }
  if constexpr (bug != Bug::missing_tail) {
    for (int64_t i = vectors * V + thread; i < n; i += threads) store(y + i, load(x + i));
  }
}

// y[cluster] = sum of a row of n, a share of it in each block, exchanged through distributed shared memory; written by
// every block for itself.
template <Bug bug>
__global__ void cluster_sum(const float* x, float* y, int n) {
  FASTREG_SHARED(float, partial, 1);
  FASTREG_DYNAMIC_SHARED(float, scratch);
  const unsigned rank = fastreg::cluster_rank(), blocks = fastreg::cluster_size();
  const float* row = x + int64_t(blockIdx.x / blocks) * n;
  float sum = 0.0f;
  for (int i = int(rank * blockDim.x + threadIdx.x); i < n; i += int(blocks * blockDim.x)) sum += load(row + i);
  sum = block_sum<Bug::none>(sum, scratch);
  if (threadIdx.x == 0) partial[0] = sum;
  if constexpr (bug != Bug::no_cluster_barrier_before_read) {
    if constexpr (bug == Bug::relaxed_cluster_barrier_before_read) {
      fastreg::cluster_arrive_relaxed();
    } else {
      fastreg::cluster_arrive();
    }
    if constexpr (bug != Bug::no_cluster_wait) fastreg::cluster_wait();
  }
  float total = 0.0f;
  for (unsigned k = 0; k < blocks; ++k) total += *fastreg::cluster_peer(partial, k);
  if (threadIdx.x == 0) store(y + blockIdx.x, total);
  if constexpr (bug != Bug::no_cluster_barrier_before_exit) fastreg::cluster_sync();
}

// y[block] = sum of all x, after a barrier of the grid; partial: one float per block. Cooperative.
template <Bug bug>
__global__ void grid_sum(const float* x, float* partial, unsigned* counter, float* y, int n) {
  FASTREG_DYNAMIC_SHARED(float, scratch);
  float sum = 0.0f;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) sum += load(x + i);
  sum = block_sum<Bug::none>(sum, scratch);
  if (threadIdx.x == 0) store(partial + blockIdx.x, sum);
  if constexpr (bug != Bug::no_grid_barrier) fastreg::grid_barrier(counter, gridDim.x, 0);
  float total = 0.0f;
  for (unsigned k = threadIdx.x; k < gridDim.x; k += blockDim.x) total += fastreg::load_coherent(partial + k);
  total = block_sum<Bug::none>(total, scratch);
  if (threadIdx.x == 0) store(y + blockIdx.x, total);
}

// *y = sum of all x, by the block that finishes last; partial: one float per block. Any grid.
template <Bug bug>
__global__ void last_block_sum(const float* x, float* partial, unsigned* counter, float* y, int n) {
  FASTREG_DYNAMIC_SHARED(float, scratch);
  float sum = 0.0f;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) sum += load(x + i);
  sum = block_sum<Bug::none>(sum, scratch);
  const unsigned slot = bug == Bug::race_between_blocks ? 0 : blockIdx.x;
  if (threadIdx.x == 0) store(partial + slot, sum);
  bool last;
  if constexpr (bug == Bug::ticket_without_fence) {
    last = __syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1u) == gridDim.x - 1);
  } else if constexpr (bug == Bug::ticket_not_counted) {
    last = blockIdx.x == gridDim.x - 1;
  } else {
    last = fastreg::is_last_block(counter, gridDim.x);
  }
  if (!last) return;
  float total = 0.0f;
  for (unsigned k = threadIdx.x; k < gridDim.x; k += blockDim.x) total += fastreg::load_coherent(partial + k);
  total = block_sum<Bug::none>(total, scratch);
  if (threadIdx.x == 0) store(y, total);
}

// The same with CUDA's own words: a relaxed atomic between fences.
[[maybe_unused]] static __global__ void fenced_last_block_sum(const float* x, float* partial, unsigned* counter,
                                                              float* y, int n) {
  FASTREG_DYNAMIC_SHARED(float, scratch);
  float sum = 0.0f;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) sum += load(x + i);
  sum = block_sum<Bug::none>(sum, scratch);
  bool last = false;
  if (threadIdx.x == 0) {
    store(partial + blockIdx.x, sum);
    __threadfence();
    last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  if (!__syncthreads_or(last)) return;
  float total = 0.0f;
  for (unsigned k = threadIdx.x; k < gridDim.x; k += blockDim.x) total += fastreg::load_coherent(partial + k);
  total = block_sum<Bug::none>(total, scratch);
  if (threadIdx.x == 0) store(y, total);
}

// y[i] = x of the neighbour within the block's tile, through two stages of shared memory filled by per-thread copies.
// n is a multiple of the tile, 4 floats a thread.
template <Bug bug>
__global__ void pipeline(const float* x, float* y, int tiles) {
  FASTREG_DYNAMIC_SHARED(float, stages);
  const int tile = int(blockDim.x) * 4, thread = int(threadIdx.x);
  // The block's tiles alternate between the stages.
  const auto fetch = [&](int t, int stage) {
    if (t < tiles)
      fastreg::copy_async<16>(stages + (stage % 2) * tile + 4 * thread, x + int64_t(t) * tile + 4 * thread);
    fastreg::copy_async_commit();
  };
  int stage = 0;
  fetch(int(blockIdx.x), 0);
  for (int t = int(blockIdx.x); t < tiles; t += int(gridDim.x), ++stage) {
    fetch(t + int(gridDim.x), stage + 1);
    if constexpr (bug == Bug::copy_wait_too_weak) {
      fastreg::copy_async_wait<2>();
    } else if constexpr (bug != Bug::no_copy_wait) {
      fastreg::copy_async_wait<1>();
    }
    if constexpr (bug != Bug::no_barrier_after_copy) __syncthreads();
    const float* current = stages + (stage % 2) * tile;
    for (int i = thread; i < tile; i += int(blockDim.x)) {
      store(y + int64_t(t) * tile + i, current[(i + 4) % tile]);
    }
    if constexpr (bug != Bug::no_barrier_before_overwrite) __syncthreads();
  }
  fastreg::copy_async_wait<0>();
}

// y = 2 x in slabs: bulk load, in place, bulk store; one slab of `slab` floats in flight, two phases of a barrier in
// turn. One block.
template <Bug bug>
__global__ void bulk_double(const float* x, float* y, int slabs, int slab) {
  FASTREG_DYNAMIC_SHARED(float, buffer);
  FASTREG_SHARED(fastreg::TransactionBarrier, arrived, 1);
  const unsigned bytes = unsigned(slab) * unsigned(sizeof(float));
  if (threadIdx.x == 0) fastreg::barrier_init(arrived, 1);
  if constexpr (bug != Bug::no_barrier_after_transaction_init) __syncthreads();
  for (int k = 0; k < slabs; ++k) {
    if (threadIdx.x == 0) {
      if constexpr (bug != Bug::no_wait_before_reuse) fastreg::bulk_wait_read<0>();
      constexpr unsigned kMissing = bug == Bug::too_few_transaction_bytes ? 16 : 0;
      fastreg::barrier_arrive_expect(arrived, bytes - kMissing);
      fastreg::bulk_load(buffer, x + int64_t(k) * slab, bytes, arrived);
    }
    if constexpr (bug == Bug::wrong_transaction_parity) {
      fastreg::barrier_wait(arrived, unsigned(k + 1) % 2);
    } else if constexpr (bug != Bug::no_transaction_wait) {
      fastreg::barrier_wait(arrived, unsigned(k) % 2);
    }
    for (int i = int(threadIdx.x); i < slab; i += int(blockDim.x)) buffer[i] *= 2.0f;
    fastreg::bulk_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      fastreg::bulk_store(y + int64_t(k) * slab, buffer, bytes);
      fastreg::bulk_commit();
    }
  }
  if constexpr (bug != Bug::no_wait_before_exit) {
    if (threadIdx.x == 0) fastreg::bulk_wait<0>();
  }
}

// Two kernels that may overlap: y = x + 1, then z = 2 y.
[[maybe_unused]] static __global__ void produce(const float* x, float* y, int n) {
  fastreg::allow_next_kernel();
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) {
    store(y + i, load(x + i) + 1.0f);
  }
}
template <Bug bug>
__global__ void consume(const float* y, float* z, int n) {
  if constexpr (bug != Bug::no_wait_for_previous_kernel) fastreg::wait_for_previous_kernel();
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) {
    store(z + i, 2.0f * load(y + i));
  }
}

// y[i] = x[i] through shared memory, the word of thread i at i * stride: strides that share a factor with the number
// of banks conflict.
[[maybe_unused]] static __global__ void shared_stride(const float* x, float* y, int stride) {
  FASTREG_DYNAMIC_SHARED(float, words);
  store(words + threadIdx.x * stride, load(x + threadIdx.x));
  __syncthreads();
  store(y + threadIdx.x, load(words + threadIdx.x * stride));
}

}  // namespace selftest
