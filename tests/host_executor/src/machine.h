// The virtual machine: which threads can run, which one does, and what went wrong.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "state.h"

namespace host_executor {

class Machine {
 public:
  // --- for the host
  // Starts afresh under these options.
  void reset(const Options& options);
  void enqueue(std::unique_ptr<Grid> grid);
  void enqueue(std::function<void()> host_operation);
  // Runs everything that is queued.
  void drain();
  Result& result() { return result_; }
  const Options& options() const { return options_; }

  // --- for the functions that kernels call
  Thread& current() { return *current_; }
  bool running() const { return current_ != nullptr; }
  // Reports an error of the current thread, or of the host.
  void fail(const std::string& text);
  void fail(const Grid& grid, const std::string& text);
  // Leaves the current thread until another one wakes it.
  void park(Wait wait);
  void wake(Thread& thread);
  void wake_all(std::vector<Thread*>& threads);
  // Lets the scheduler choose anew; the current thread stays able to run.
  void reschedule();
  // The current thread cannot get on: every other one may go first.
  void yield();
  // Called at each access: the points between barriers at which `pct` preempts.
  void access_point();
  void atomic_point();
  // Threads that wait for a word to change.
  void park_on_word(const void* address, Wait wait);
  void wake_on_word(const void* address);
  // Whether asynchronous copies wait: the schedule's choice.
  bool copies_late();
  // Where the current thread is, for messages.
  std::string where() const;

 private:
  struct Ready {
    uint64_t priority, order;
    Thread* thread;
    bool operator<(const Ready& other) const {
      return priority != other.priority ? priority > other.priority : order > other.order;
    }
  };
  struct Step {  // of the stream: one of the two
    std::unique_ptr<Grid> grid;
    std::function<void()> host_operation;
  };

  static void fiber_main();
  void start(Grid& grid, Grid* previous);
  void admit(Grid& grid);
  void admit_cluster(Grid& grid, unsigned number);
  void run_grid(Grid& grid);
  void finish(Grid& grid);
  void retire(Cluster& cluster);
  void exit_current();
  void make_ready(Thread& thread);
  void report_stuck();
  void abandon();
  Fiber* take_fiber();
  uint64_t random(uint64_t below) { return random_() % below; }

  Options options_;
  Result result_;
  std::set<std::string> reported_;
  std::mt19937_64 random_;
  std::priority_queue<Ready> ready_;
  uint64_t order_ = 0;
  Thread* current_ = nullptr;
  std::unique_ptr<Fiber> host_;
  std::deque<Fiber*> idle_fibers_;
  std::deque<Step> stream_;
  std::multimap<const void*, Thread*> waiting_on_word_;
  bool stuck_ = false;
  uint64_t turns_without_progress_ = 0;
  unsigned accesses_since_switch_ = 0;
};

extern Machine machine;

// From memory.cpp: a block's shared memory.
void create_shared_memory(Block& block);
void check_shared_memory(Block& block);  // reports writes to its guards
void poison_shared_memory(Block& block);
void free_shared_memory(Block& block);
// From memory.cpp: reports writes to the guards of buffers.
void check_buffers();
// From async.cpp
void check_copies_complete(Thread& thread);
// From kernel_name.cpp
std::string kernel_name(const void* kernel);
// "thread (1,0,0)"
std::string describe(const char* what, const uint3& index);
std::string describe(const Wait& wait);

}  // namespace host_executor
