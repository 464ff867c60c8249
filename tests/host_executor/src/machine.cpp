#include "machine.h"

#include <algorithm>

#include "sanitizer.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_executor {

Machine machine;

namespace {

// A thread that makes this many accesses in one go may be waiting for another by loading a word again and again: the
// others get a turn. When this many such turns pass and nothing is woken, parked or finished, the kernel spins for
// ever.
constexpr unsigned kAccessesPerTurn = 1024;
constexpr unsigned kAccessesPerAtomic = 16;  // atomics count for more: they rarely do anything but wait
constexpr uint64_t kSpinLimit = 20 * 1000;
constexpr uint64_t kLowest = uint64_t(1) << 63;

#if defined(FASTREG_EXECUTOR_TSAN)
// What ran on one fiber before is ordered before what runs on it later. Threads of different blocks must not get an
// order that way, so fibers are reused as late as possible.
constexpr size_t kMinFibers = 1024;
#else
constexpr size_t kMinFibers = 0;
#endif

}  // namespace

void Machine::reset(const Options& options) {
  options_ = options;
  result_ = Result();
  reported_.clear();
  random_.seed(options.schedule.seed);
  ready_ = {};
  order_ = 0;
  stream_.clear();
  waiting_on_word_.clear();
  stuck_ = false;
  turns_without_progress_ = 0;
}

void Machine::enqueue(std::unique_ptr<Grid> grid) { stream_.push_back({std::move(grid), nullptr}); }
void Machine::enqueue(std::function<void()> host_operation) { stream_.push_back({nullptr, std::move(host_operation)}); }

void Machine::drain() {
  Quiet quiet;
  host_ = std::make_unique<Fiber>();
  while (!stream_.empty() && !stuck_) {
    Step& step = stream_.front();
    if (step.grid) {
      run_grid(*step.grid);
    } else {
      step.host_operation();
    }
    if (!stuck_) stream_.pop_front();
  }
  if (stuck_) abandon();
  check_buffers();
}

void Machine::run_grid(Grid& grid) {
  if (!grid.started) start(grid, nullptr);
  while (grid.unfinished_blocks) {
    Grid* next = stream_.size() > 1 ? stream_[1].grid.get() : nullptr;
    if (next && !next->started && next->launch.overlap_previous && grid.blocks_holding_next == 0) start(*next, &grid);
    admit(grid);
    if (next && next->started) admit(*next);
    if (ready_.empty() || turns_without_progress_ > kSpinLimit) {
      report_stuck();
      return;
    }
    Thread& thread = *ready_.top().thread;
    ready_.pop();
    accesses_since_switch_ = 0;
    current_ = &thread;
    threadIdx = thread.index;
    blockIdx = thread.block->index;
    blockDim = thread.block->grid->launch.block;
    gridDim = thread.block->grid->launch.grid;
    host_->switch_to(*thread.fiber);
    tell_where();
    current_ = nullptr;
    if (thread.done && thread.block->cluster->alive == 0) retire(*thread.block->cluster);
  }
  finish(grid);
}

void Machine::start(Grid& grid, Grid* previous) {
  grid.started = true;
  grid.previous = previous;
  const unsigned blocks = grid.launch.grid.x * grid.launch.grid.y * grid.launch.grid.z;
  const unsigned clusters = blocks / grid.launch.cluster;
  for (unsigned i = 0; i < clusters; ++i) grid.waiting_clusters.push_back(i);
  const unsigned multiprocessors = unsigned(options_.device.multiprocessors);
  switch (options_.schedule.policy) {
    case Policy::fair:
      grid.resident_limit = multiprocessors;
      break;
    case Policy::forward:
      grid.resident_limit = 1;
      break;
    case Policy::reverse:
      grid.resident_limit = 1;
      std::reverse(grid.waiting_clusters.begin(), grid.waiting_clusters.end());
      break;
    case Policy::pct:
      grid.resident_limit = 1 + unsigned(random(2 * multiprocessors));
      std::shuffle(grid.waiting_clusters.begin(), grid.waiting_clusters.end(), random_);
      break;
  }
  if (grid.launch.cooperative) grid.resident_limit = blocks;
  grid.unfinished_blocks = grid.blocks_holding_next = blocks;
  grid.counts->launches += 1;
  release(&grid.start_key);
}

void Machine::admit(Grid& grid) {
  const unsigned size = grid.launch.cluster;
  while (!grid.waiting_clusters.empty() &&
         (grid.clusters.empty() || (grid.clusters.size() + 1) * size <= grid.resident_limit)) {
    const unsigned number = grid.waiting_clusters.front();
    grid.waiting_clusters.pop_front();
    admit_cluster(grid, number);
  }
}

void Machine::admit_cluster(Grid& grid, unsigned number) {
  const dim3& shape = grid.launch.block;
  const dim3& blocks = grid.launch.grid;
  const unsigned threads = shape.x * shape.y * shape.z;
  grid.clusters.push_back(std::make_unique<Cluster>());
  Cluster& cluster = *grid.clusters.back();
  cluster.alive = grid.launch.cluster * threads;
  for (unsigned rank = 0; rank < grid.launch.cluster; ++rank) {
    Block& block = cluster.blocks.emplace_back();
    const unsigned id = number * grid.launch.cluster + rank;
    block.cluster = &cluster;
    block.grid = &grid;
    block.rank = rank;
    block.alive = threads;
    block.index = {id % blocks.x, id / blocks.x % blocks.y, id / blocks.x / blocks.y};
    create_shared_memory(block);
    grid.counts->blocks += 1;
    grid.counts->threads += threads;
    uint64_t warp_priority = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (i % 32 == 0) {
        block.warps.emplace_back();
        warp_priority = random_() >> 2 & ~uint64_t(0xFF);
      }
      Thread& thread = block.threads.emplace_back();
      thread.fiber = take_fiber();
      thread.block = &block;
      thread.warp = &block.warps.back();
      thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
      thread.lane = int(i % 32);
      thread.warp->alive |= 1u << thread.lane;
      thread.warp->lanes[thread.lane] = &thread;
      switch (options_.schedule.policy) {
        case Policy::fair:
          break;  // set whenever the thread becomes ready
        case Policy::forward:
          thread.priority = ++order_;
          break;
        case Policy::reverse:
          thread.priority = kLowest - ++order_;
          break;
        case Policy::pct:
          thread.priority = warp_priority + random(256);
          break;
      }
    }
  }
  for (Block& block : cluster.blocks) {
    for (Thread& thread : block.threads) make_ready(thread);
  }
}

void Machine::finish(Grid& grid) {
  acquire(&grid.end_key);
  if (stream_.size() > 1 && stream_[1].grid && stream_[1].grid->previous == &grid) {
    release(&stream_[1].grid->previous_end_key);
    stream_[1].grid->previous = nullptr;
    wake_all(stream_[1].grid->waiting_for_previous);
  }
}

// All threads of the cluster have exited.
void Machine::retire(Cluster& cluster) {
  Grid& grid = *cluster.blocks.front().grid;
  for (Block& block : cluster.blocks) {
    for (Warp& warp : block.warps) warp.requests.finish(*grid.counts);
    for (Thread& thread : block.threads) idle_fibers_.push_back(thread.fiber);
    free_shared_memory(block);
  }
  grid.clusters.erase(std::find_if(grid.clusters.begin(), grid.clusters.end(),
                                   [&](const auto& candidate) { return candidate.get() == &cluster; }));
}

void Machine::fiber_main() {
  Fiber::started();
  for (;;) {
    Grid* grid = machine.current_->block->grid;
    machine.current_->block->started = true;
    acquire(&grid->start_key);
    grid->launch.run_thread();
    release(&grid->end_key);
    Quiet quiet;
    machine.exit_current();  // returns when the fiber gets its next thread
  }
}

void Machine::exit_current() {
  Thread& thread = *current_;
  Block& block = *thread.block;
  check_copies_complete(thread);
  thread.done = true;
  thread.warp->alive &= ~(1u << thread.lane);
  block.alive -= 1;
  block.cluster->alive -= 1;
  turns_without_progress_ = 0;
  if (block.barrier.arrived) fail("exits while other threads of the block wait at __syncthreads");
  if (thread.cluster_arrived) {
    fail("exits between cluster_arrive and cluster_wait");
  } else if (block.cluster->barrier.arrived) {
    fail("exits while other threads of the cluster have arrived at its barrier");
  }
  if (block.alive == 0) {
    if (!block.late_loads.empty()) fail("the block exits while bulk loads into its shared memory are in flight");
    check_shared_memory(block);
    poison_shared_memory(block);
    block.grid->unfinished_blocks -= 1;
    if (!block.allows_next_kernel) block.grid->blocks_holding_next -= 1;
  }
  thread.fiber->switch_to(*host_);
}

void Machine::make_ready(Thread& thread) {
  if (options_.schedule.policy == Policy::fair) thread.priority = order_;
  ready_.push({thread.priority, ++order_, &thread});
}

void Machine::wake(Thread& thread) {
  thread.wait = {};
  turns_without_progress_ = 0;
  if (options_.schedule.policy == Policy::pct && random(64) == 0) thread.priority = random_() >> 2;
  make_ready(thread);
}

void Machine::wake_all(std::vector<Thread*>& threads) {
  for (Thread* thread : threads) wake(*thread);
  threads.clear();
}

void Machine::park(Wait wait) {
  current_->wait = wait;
  turns_without_progress_ = 0;
  current_->fiber->switch_to(*host_);
}

void Machine::reschedule() {
  Thread& thread = *current_;
  make_ready(thread);
  thread.fiber->switch_to(*host_);
}

void Machine::yield() {
  ++turns_without_progress_;
  if (options_.schedule.policy != Policy::fair) current_->priority = kLowest + order_;
  reschedule();
}

void Machine::access_point() {
  if (++accesses_since_switch_ >= kAccessesPerTurn) {
    yield();  // perhaps it waits for another thread by loading a word again and again
  } else if (options_.schedule.policy == Policy::pct && random(32) == 0) {
    current_->priority = random_() >> 2;
    reschedule();
  }
}

void Machine::atomic_point() {
  accesses_since_switch_ += kAccessesPerAtomic;
  if (accesses_since_switch_ >= kAccessesPerTurn) {
    yield();
  } else if (options_.schedule.policy == Policy::fair) {
    reschedule();
  } else if (options_.schedule.policy == Policy::pct && random(2) == 0) {
    current_->priority = random_() >> 2;
    reschedule();
  }
}

void Machine::park_on_word(const void* address, Wait wait) {
  waiting_on_word_.emplace(address, current_);
  park(wait);
}

void Machine::wake_on_word(const void* address) {
  const auto [first, last] = waiting_on_word_.equal_range(address);
  for (auto it = first; it != last; ++it) wake(*it->second);
  waiting_on_word_.erase(first, last);
}

bool Machine::copies_late() {
  switch (options_.schedule.policy) {
    case Policy::forward:
      return true;
    case Policy::pct:
      return random(2) == 0;
    default:
      return false;
  }
}

Fiber* Machine::take_fiber() {
  // Fibers live as long as the process: making one costs more than keeping it.
  static std::deque<std::unique_ptr<Fiber>> all;
  while (idle_fibers_.empty() || all.size() < kMinFibers) {
    all.push_back(std::make_unique<Fiber>(&Machine::fiber_main));
    idle_fibers_.push_back(all.back().get());
  }
  Fiber* fiber = idle_fibers_.front();
  idle_fibers_.pop_front();
  return fiber;
}

// The threads are in the middle of a kernel and hold references to all of this.
void Machine::abandon() {
  static auto& abandoned = *new std::vector<std::deque<Step>>;
  for (const Step& step : stream_) {
    if (!step.grid) continue;
    for (const auto& cluster : step.grid->clusters) {
      for (const Block& block : cluster->blocks) {
        for (const Thread& thread : block.threads) thread.fiber->settle();
      }
    }
  }
  abandoned.push_back(std::move(stream_));
  stream_.clear();
  ready_ = {};
  waiting_on_word_.clear();
}

}  // namespace host_executor
