// Stacks of their own to run CUDA threads on, and the switch between them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(FASTREG_EXECUTOR_UCONTEXT)
#define FASTREG_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

namespace host_executor {

class Fiber {
 public:
  // The context that is running.
  Fiber();
  // A context that will run `entry` once it is switched to. `entry` must not return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this context, which must be the running one, for another.
  void switch_to(Fiber& other);
  // For the first lines of `entry`.
  static void started();

  // For a context that will never run again: what it did comes before what the caller does from now on.
  void settle();

  // ThreadSanitizer's name of this context.
  void* sanitizer_fiber = nullptr;

 private:
  void* stack_ = nullptr;  // with a guard page below
  void* fake_stack_ = nullptr;
#if FASTREG_FIBER_UCONTEXT
  ucontext_t context_;
#else
  void* saved_ = nullptr;  // stack pointer while not running
#endif
};

}  // namespace host_executor
