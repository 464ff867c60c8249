#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizer.h"

#if !FASTREG_FIBER_UCONTEXT
// Saves the registers that a function must preserve, then continues where the other context saved its own.
extern "C" void fastreg_switch_stack(void** saved, void* other);
asm(R"(
.text
.globl fastreg_switch_stack
.type fastreg_switch_stack, @function
fastreg_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size fastreg_switch_stack, .-fastreg_switch_stack
)");
#endif

namespace host_executor {
namespace {

constexpr size_t kGuard = 4096;
#if defined(FASTREG_EXECUTOR_ASAN) || defined(FASTREG_EXECUTOR_TSAN)
constexpr size_t kStack = 256 * 1024;  // only touched pages cost memory
#else
constexpr size_t kStack = 64 * 1024;
#endif

#if defined(FASTREG_EXECUTOR_TSAN)
// A switch is the executor's choice: only barriers order the kernel's threads.
constexpr unsigned kOrdersNothing = 1;
#endif

}  // namespace

Fiber::Fiber() {
#if defined(FASTREG_EXECUTOR_TSAN)
  sanitizer_fiber = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)()) {
  void* memory =
      mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("host executor: no memory for a thread's stack");
    std::abort();
  }
  mprotect(memory, kGuard, PROT_NONE);
  stack_ = static_cast<char*>(memory) + kGuard;
#if defined(FASTREG_EXECUTOR_TSAN)
  sanitizer_fiber = __tsan_create_fiber(0);
#endif
#if FASTREG_FIBER_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  // As if switch_stack had been called from `entry`'s first instruction: six registers, then the return address. The
  // null above it ends a stack trace and puts the stack where the calling convention wants it at a function's entry.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  saved_ = top;
#endif
}

Fiber::~Fiber() {
  if (stack_) munmap(static_cast<char*>(stack_) - kGuard, kGuard + kStack);
}

void Fiber::switch_to(Fiber& other) {
#if defined(FASTREG_EXECUTOR_ASAN)
  __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, kStack);
#endif
#if defined(FASTREG_EXECUTOR_TSAN)
  __tsan_switch_to_fiber(other.sanitizer_fiber, kOrdersNothing);
#endif
#if FASTREG_FIBER_UCONTEXT
  swapcontext(&context_, &other.context_);
#else
  fastreg_switch_stack(&saved_, other.saved_);
#endif
#if defined(FASTREG_EXECUTOR_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::settle() {
#if defined(FASTREG_EXECUTOR_TSAN)
  char key = 0;
  void* caller = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_fiber, kOrdersNothing);
  release(&key);
  __tsan_switch_to_fiber(caller, kOrdersNothing);
  acquire(&key);
#endif
}

void Fiber::started() {
#if defined(FASTREG_EXECUTOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace host_executor
