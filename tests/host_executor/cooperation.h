// Clusters, asynchronous copies and programmatic dependent launch: what csrc/kernels/common/cluster.h, async_copy.h and
// grid_sync.h call. They hold the descriptions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host_executor {

unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive(bool releases);
void cluster_wait();
void* cluster_peer(void* shared, unsigned rank);

// The schedule decides when a copy is performed: at its issue, or as late as a wait allows.
void copy_async(void* shared, const void* global, size_t bytes);
void copy_async_commit();
void copy_async_wait(int pending);

void transaction_init(void* barrier, unsigned arrivals);
void transaction_arrive(void* barrier, unsigned expected_bytes);
void transaction_wait(void* barrier, unsigned parity);
void bulk_load(void* shared, const void* global, size_t bytes, void* barrier);
void bulk_store(void* global, const void* shared, size_t bytes);
void bulk_fence();
void bulk_commit();
void bulk_wait(int pending);

void wait_for_previous_kernel();
void allow_next_kernel();

// A place where another thread may go first.
void yield();

}  // namespace host_executor

inline void __nanosleep(unsigned) { host_executor::yield(); }
