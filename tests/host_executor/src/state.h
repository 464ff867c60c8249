// What is in flight: grids, their clusters, blocks, warps and threads.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "counting.h"
#include "fiber.h"
#include "host_executor/executor.h"
#include "host_executor/language.h"
#include "host_executor/runtime.h"
#include "host_executor/warp.h"

namespace host_executor {

struct Grid;
struct Cluster;
struct Block;
struct Warp;

// What a parked thread waits for, for messages: text with the two values.
struct Wait {
  enum Kind { none, block_barrier, warp_function, cluster_barrier, transaction, counter, previous_kernel } kind = none;
  uint64_t a = 0, b = 0;
};

// An asynchronous copy that nobody has waited for yet.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  void* transaction;  // of a bulk load; else null
  unsigned group;     // else
  char* issued;       // key: released by the issuing thread
  bool performed;
};

// The copies of one thread that are waited for in groups. Keys by group, so that waiting for one group does not
// order the next.
struct CopyGroups {
  std::vector<Copy> copies;
  unsigned open_group = 0;
  char issued[8] = {}, performed[8] = {};
};

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint3 index{};
  int lane = 0;
  uint64_t priority = 0;  // lower runs first
  bool done = false;
  Wait wait;

  uint64_t cluster_generation = 0;  // of the cluster barrier at which it has arrived
  bool cluster_arrived = false;
  CopyGroups copies, bulk_stores;

  // Fences and atomics, for race detection only.
  bool fenced = false;                           // a fence since the last barrier: atomics release
  std::vector<const volatile void*> read_words;  // atomics since the last fence: it acquires them
};

// Counts arrivals and completes. Two keys, because a fast thread may arrive at the next generation before a slow one
// has left this one.
struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
  char keys[2] = {};
  std::vector<Thread*> waiting;
  char& key() { return keys[generation & 1]; }
};

struct BlockBarrierState : Barrier {
  BlockBarrier kind = BlockBarrier::plain;
  unsigned holds = 0;  // predicates
  int results[2] = {};
  int result() const {
    switch (kind) {
      case BlockBarrier::any:
        return holds > 0;
      case BlockBarrier::all:
        return holds == arrived;
      case BlockBarrier::count:
        return int(holds);
      default:
        return 0;
    }
  }
};

// A meeting of the lanes of one mask.
struct Rendezvous {
  WarpFunction function = WarpFunction::sync;
  unsigned arrived = 0;
  uint64_t generation = 0;
  char keys[2] = {};
  uint64_t in[32] = {}, out[32] = {};
};

struct Warp {
  unsigned alive = 0;  // lanes that exist and have not exited
  Thread* lanes[32] = {};
  std::map<unsigned, Rendezvous> rendezvous;  // by mask
  RequestCounter requests;
};

// A TransactionBarrier of csrc/kernels/common/async_copy.h.
struct Transaction {
  unsigned arrivals = 0;  // per phase
  unsigned pending = 0;
  int64_t bytes = 0;  // expected, less arrived
  uint64_t phase = 0;
  char keys[2] = {};
  char issued = 0;  // key: released by whoever issues a load
  std::vector<Thread*> waiting;
};

struct Block {
  Cluster* cluster = nullptr;
  Grid* grid = nullptr;
  uint3 index{};
  unsigned rank = 0;  // in its cluster
  unsigned alive = 0;
  bool started = false;
  bool allows_next_kernel = false;
  std::deque<Thread> threads;
  std::deque<Warp> warps;
  BlockBarrierState barrier;
  // Shared memory: room for static variables, then the dynamic part, with guards around each.
  char* shared = nullptr;
  std::map<const void*, Transaction> transactions;
  std::vector<Copy> late_loads;  // bulk loads not performed yet
};

struct Cluster {
  std::deque<Block> blocks;
  Barrier barrier;
  unsigned alive = 0;
};

struct StaticVariable {
  const void* key;
  const char* name;
  size_t offset, bytes;
};

struct Grid {
  Launch launch;
  std::string name;
  Counts* counts = nullptr;
  // The same layout in each block: a cluster's blocks address each other's variables.
  std::vector<StaticVariable> variables;
  size_t static_used = 0, static_bytes = 0;  // guards counted in, and not

  std::deque<unsigned> waiting_clusters;
  std::vector<std::unique_ptr<Cluster>> clusters;
  unsigned resident_limit = 1;  // blocks
  unsigned unfinished_blocks = 0;
  unsigned blocks_holding_next = 0;  // that neither allow the next kernel nor have exited
  bool started = false;
  Grid* previous = nullptr;  // still running beside this one
  std::vector<Thread*> waiting_for_previous;
  char start_key = 0, end_key = 0, previous_end_key = 0;
};

}  // namespace host_executor
