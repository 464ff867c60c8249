#include "operators/results.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace fastreg {
namespace {

constexpr size_t kSmallest = size_t(1) << 20;  // smaller results come from torch's allocator, which keeps its pages
constexpr size_t kHugePage = size_t(2) << 20;  // buffers start at one: 64 MB take 32 page faults instead of 16 000
constexpr size_t kPage = size_t(64) << 10;     // a multiple of every system's smallest
constexpr size_t kWarm = size_t(64) << 20;     // of what is kept, so much is not marked as free: marking takes its time
constexpr int64_t kDefaultLimit = int64_t(1024) << 20;

// FASTREG_CPU_CACHE: the most bytes to keep, in MiB (default 1024); 0 leaves all results to torch's allocator.
int64_t limit_from_environment() {
  const char* text = std::getenv("FASTREG_CPU_CACHE");
  if (text == nullptr || *text == '\0') return kDefaultLimit;
  char* end = nullptr;
  const long long mebibytes = std::strtoll(text, &end, 10);
  TORCH_CHECK_VALUE(*end == '\0' && mebibytes >= 0 && mebibytes < (1ll << 40),
                    "FASTREG_CPU_CACHE must be a number of MiB, got '", text, "'");
  return mebibytes << 20;
}

#if defined(__linux__)

struct Buffer {
  void* data;
  size_t size;
  bool is_free = false;  // marked as such
};

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// A buffer that starts at a huge page, and consists of them but for its end; data is null if there is no memory.
Buffer map(size_t size) {
  void* const region = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) return {};
  char* const begin = static_cast<char*>(region);
  char* const data = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(begin), kHugePage));
  if (data > begin) munmap(begin, size_t(data - begin));
  munmap(data + size, size_t(begin + kHugePage - data));
  madvise(data, size, MADV_HUGEPAGE);  // a refusal costs time alone
  return {data, size};
}
// Whole huge pages only: others would cost time one by one.
void mark_free(Buffer& b) {
  b.is_free = true;
  if (const size_t huge = b.size / kHugePage * kHugePage) madvise(b.data, huge, MADV_FREE);
}
void unmap(const std::vector<Buffer>& buffers) {
  for (const Buffer& b : buffers) munmap(b.data, b.size);
}

// Lives as long as the process: tensors may be freed while it ends.
class ResultCache final : public c10::Allocator {
 public:
  static ResultCache& instance() {
    static ResultCache& cache = *new ResultCache;
    return cache;
  }

  size_t limit() const { return limit_; }

  c10::DataPtr allocate(size_t n) override {
    // A tensor that is resized comes here whatever its size.
    if (n < kSmallest) return c10::GetCPUAllocator()->allocate(n);
    Buffer buffer = take(n);
    if (buffer.data == nullptr) buffer = map(round_up(n, kPage));
    if (buffer.data == nullptr) {
      empty();
      return c10::GetCPUAllocator()->allocate(n);  // which reports the failure, should it fail as well
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      lent_[buffer.data] = buffer.size;
    }
    c10::profiledCPUMemoryReporter().New(buffer.data, n);
    return {buffer.data, buffer.data, [](void* data) { instance().release(data); }, at::kCPU};
  }

  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  size_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_from(kept_.begin());
  }

  void empty() { unmap(shrink_to(0)); }

 private:
  ResultCache() : limit_(size_t(limit_from_environment())) {
    // A child process must not find the lock taken by a thread that it does not have.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  // The smallest buffer kept that holds n bytes, at most an eighth of it unused, and of those the one that was
  // released last: its content may still be in the processor's cache.
  Buffer take(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto b = kept_.begin(); b != kept_.end(); ++b)
      if (b->size >= n && b->size - n <= b->size / 8 && (best == kept_.end() || b->size <= best->size)) best = b;
    return best == kept_.end() ? Buffer() : take_out(best);
  }

  void release(void* data) {
    c10::profiledCPUMemoryReporter().Delete(data);
    std::unique_lock<std::mutex> lock(mutex_);
    const Buffer buffer = {data, lent_.at(data)};
    lent_.erase(data);
    if (buffer.size > limit_) {
      lock.unlock();
      return unmap({buffer});
    }
    kept_.push_back(buffer);
    while (bytes_from(first_warm()) > kWarm) {
      Buffer coldest = take_out(first_warm());  // so that nobody takes it meanwhile
      lock.unlock();
      mark_free(coldest);
      lock.lock();
      kept_.insert(first_warm(), coldest);
    }
    lock.unlock();
    unmap(shrink_to(limit_));
  }

  // Takes out the buffers that were released first, until no more than `bytes` are left.
  std::vector<Buffer> shrink_to(size_t bytes) {
    std::vector<Buffer> out;
    const std::lock_guard<std::mutex> lock(mutex_);
    while (bytes_from(kept_.begin()) > bytes) out.push_back(take_out(kept_.begin()));
    return out;
  }

  // With the lock taken:
  using Position = std::vector<Buffer>::iterator;
  Position first_warm() {
    return std::find_if(kept_.begin(), kept_.end(), [](const Buffer& b) { return !b.is_free; });
  }
  size_t bytes_from(Position begin) {
    return std::accumulate(begin, kept_.end(), size_t(0), [](size_t sum, const Buffer& b) { return sum + b.size; });
  }
  Buffer take_out(Position at) {
    const Buffer buffer = *at;
    kept_.erase(at);
    return buffer;
  }

  const size_t limit_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> lent_;
  std::vector<Buffer> kept_;  // in the order in which they were released; the first ones are marked as free
};

#endif

}  // namespace

at::Tensor empty_result_like(const at::Tensor& x) {
  const bool contiguous = x.is_contiguous();
  if (contiguous || x.is_contiguous(at::MemoryFormat::ChannelsLast))
    return empty_result(x.sizes(), standard_strides(x.sizes(), !contiguous), x);
  if (!x.is_non_overlapping_and_dense()) return at::empty_like(x);
  return empty_result(x.sizes(), x.strides(), x);
}

at::Tensor empty_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& x) {
#if defined(__linux__)
  if (x.is_cpu() && x.nbytes() >= kSmallest && ResultCache::instance().limit() > 0)
    return at::detail::empty_strided_generic(sizes, strides, &ResultCache::instance(),
                                             c10::DispatchKeySet(c10::DispatchKey::CPU), x.scalar_type());
#endif
  return at::empty_strided(sizes, strides, x.options());
}

#if defined(__linux__)
int64_t cached_bytes() { return int64_t(ResultCache::instance().kept_bytes()); }
void empty_cache() { ResultCache::instance().empty(); }
#else
int64_t cached_bytes() { return 0; }
void empty_cache() {}
#endif

}  // namespace fastreg
