// What the sanitizers have to be told. The executor itself is never instrumented: FASTREG_EXECUTOR_ASAN and
// FASTREG_EXECUTOR_TSAN say which sanitizer the kernels and tests were built with.
#pragma once

#include <cstddef>

#if defined(FASTREG_EXECUTOR_ASAN)
extern "C" {
void __asan_poison_memory_region(void const volatile* address, size_t bytes);
void __asan_unpoison_memory_region(void const volatile* address, size_t bytes);
void __asan_set_error_report_callback(void (*callback)(const char*));
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
}
#endif

#if defined(FASTREG_EXECUTOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace host_executor {

#if defined(FASTREG_EXECUTOR_ASAN)
inline void poison_region(const void* address, size_t bytes) { __asan_poison_memory_region(address, bytes); }
inline void unpoison_region(const void* address, size_t bytes) { __asan_unpoison_memory_region(address, bytes); }
#else
inline void poison_region(const void*, size_t) {}
inline void unpoison_region(const void*, size_t) {}
#endif

#if defined(FASTREG_EXECUTOR_TSAN)

// A key stands for something that orders memory: whoever acquires it sees what was done before its releases.
inline void release(void* key) { __tsan_release(key); }
inline void acquire(void* key) { __tsan_acquire(key); }
inline void observe_read(const void* address, size_t bytes) { __tsan_read_range(const_cast<void*>(address), bytes); }
inline void observe_write(void* address, size_t bytes) { __tsan_write_range(address, bytes); }

// ThreadSanitizer sees the executor's calls of malloc, memcpy and the like, which say nothing about the kernel.
class Quiet {
 public:
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

#else

inline void release(void*) {}
inline void acquire(void*) {}
inline void observe_read(const void*, size_t) {}
inline void observe_write(void*, size_t) {}
class Quiet {
 public:
  Quiet() {}  // not trivial, so that an object of it is not an unused variable
};

#endif

// Reports of the sanitizers since the start of the process.
int sanitizer_reports();
// From now on reports are counted.
void watch_sanitizers();
// If there was a report since the last call, says which kernel, block and thread are running.
void tell_where();

}  // namespace host_executor
