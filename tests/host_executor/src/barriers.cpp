// Barriers of blocks and clusters; waiting for counters and for other kernels.
#include "host_executor/atomics.h"
#include "host_executor/cooperation.h"
#include "machine.h"
#include "sanitizer.h"

namespace host_executor {
namespace {
constexpr size_t kRememberedWords = 64;  // of a kernel that uses atomics and never a fence
}

int block_barrier(BlockBarrier kind, bool predicate) {
  Thread& self = machine.current();
  Block& block = *self.block;
  BlockBarrierState& barrier = block.barrier;
  const unsigned parity = barrier.generation & 1;
  release(&barrier.keys[parity]);
  self.fenced = false;
  {
    Quiet quiet;
    if (block.alive < block.threads.size()) machine.fail("__syncthreads after other threads of the block have exited");
    if (barrier.arrived && barrier.kind != kind) {
      machine.fail("threads of a block are at different kinds of __syncthreads");
    }
    barrier.kind = kind;
    barrier.holds += predicate;
    if (++barrier.arrived == block.alive) {
      barrier.results[parity] = barrier.result();
      barrier.arrived = barrier.holds = 0;
      ++barrier.generation;
      machine.wake_all(barrier.waiting);
      machine.reschedule();  // the last to arrive is not always the first to leave
    } else {
      barrier.waiting.push_back(&self);
      machine.park({Wait::block_barrier, barrier.arrived, block.alive});
    }
  }
  acquire(&barrier.keys[parity]);
  return barrier.results[parity];
}

unsigned cluster_rank() { return machine.current().block->rank; }
unsigned cluster_size() { return unsigned(machine.current().block->cluster->blocks.size()); }

void cluster_arrive(bool releases) {
  Thread& self = machine.current();
  Cluster& cluster = *self.block->cluster;
  Barrier& barrier = cluster.barrier;
  if (releases) {
    release(&barrier.key());
    self.fenced = false;
  }
  Quiet quiet;
  if (self.cluster_arrived) machine.fail("cluster_arrive twice without cluster_wait");
  const size_t threads = cluster.blocks.size() * self.block->threads.size();
  if (cluster.alive < threads) machine.fail("cluster_arrive after other threads of the cluster have exited");
  self.cluster_arrived = true;
  self.cluster_generation = barrier.generation;
  if (++barrier.arrived == cluster.alive) {
    barrier.arrived = 0;
    ++barrier.generation;
    machine.wake_all(barrier.waiting);
  }
}

void cluster_wait() {
  Thread& self = machine.current();
  Barrier& barrier = self.block->cluster->barrier;
  {
    Quiet quiet;
    if (!self.cluster_arrived) {
      machine.fail("cluster_wait without cluster_arrive");
      return;
    }
    self.cluster_arrived = false;
    if (barrier.generation == self.cluster_generation) {
      barrier.waiting.push_back(&self);
      machine.park({Wait::cluster_barrier});
    } else {
      machine.reschedule();
    }
  }
  acquire(&barrier.keys[self.cluster_generation & 1]);
}

void wait_for_previous_kernel() {
  Grid& grid = *machine.current().block->grid;
  if (grid.previous) {
    Quiet quiet;
    grid.waiting_for_previous.push_back(&machine.current());
    machine.park({Wait::previous_kernel});
  }
  acquire(&grid.previous_end_key);
}

void allow_next_kernel() {
  Block& block = *machine.current().block;
  if (block.allows_next_kernel) return;
  block.allows_next_kernel = true;
  block.grid->blocks_holding_next -= 1;
}

void yield() {
  Quiet quiet;
  machine.yield();
}

void before_atomic(const volatile void* address) {
  Thread& self = machine.current();
  {
    Quiet quiet;
    self.block->grid->counts->atomics += 1;
    machine.atomic_point();
  }
  if (self.fenced) release(const_cast<void*>(address));
}

void after_atomic(const volatile void* address) {
  Quiet quiet;
  auto& words = machine.current().read_words;
  if (words.size() < kRememberedWords) words.push_back(address);
  machine.wake_on_word(const_cast<const void*>(address));
}

void fence() {
  Thread& self = machine.current();
  for (const volatile void* word : self.read_words) acquire(const_cast<void*>(word));
  self.read_words.clear();
  self.fenced = true;
}

void park_until_changed(const unsigned* address, unsigned seen, unsigned needed) {
  Quiet quiet;
  machine.park_on_word(address, {Wait::counter, seen, needed});
}

}  // namespace host_executor
