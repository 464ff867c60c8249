// Shared memory, buffers, and the check and count of each access through csrc/kernels/common/memory.h.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "host_executor/buffer.h"
#include "host_executor/cooperation.h"
#include "machine.h"
#include "sanitizer.h"

namespace host_executor {
namespace {

constexpr unsigned char kPoison = 0xFF;
// Shared memory of a block: guard, static variables with a guard after each, dynamic part, guard.
constexpr size_t kSharedGuard = 64;
constexpr size_t kStaticCapacity = 48 * 1024;
constexpr size_t kDynamicOffset = kSharedGuard + kStaticCapacity;
constexpr size_t kBufferGuard = 256;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

size_t shared_size(const Block& block) {
  return round_up(kDynamicOffset + block.grid->launch.shared_bytes + kSharedGuard, 128);
}

bool poisoned(const char* first, const char* last) {
  return std::all_of(first, last, [](char byte) { return static_cast<unsigned char>(byte) == kPoison; });
}

bool in_shared(const Block& block, const void* address) {
  const auto* p = static_cast<const char*>(address);
  return p >= block.shared && p < block.shared + shared_size(block);
}

// The block of this thread's cluster in whose shared memory the address lies, or null.
const Block* shared_owner(const void* address) {
  for (const Block& block : machine.current().block->cluster->blocks) {
    if (in_shared(block, address)) return &block;
  }
  return nullptr;
}

const StaticVariable* variable_at(const Grid& grid, size_t offset) {
  for (const StaticVariable& variable : grid.variables) {
    if (offset >= variable.offset && offset < variable.offset + variable.bytes) return &variable;
  }
  return nullptr;
}

bool within_shared(const Block& block, const void* address, size_t bytes) {
  const size_t offset = size_t(static_cast<const char*>(address) - block.shared);
  if (offset >= kDynamicOffset) return offset + bytes <= kDynamicOffset + block.grid->launch.shared_bytes;
  const StaticVariable* variable = variable_at(*block.grid, offset);
  return variable && offset + bytes <= variable->offset + variable->bytes;
}

// Buffers by their start.
std::map<const char*, const DeviceMemory*>& buffers() {
  static std::map<const char*, const DeviceMemory*> all;
  return all;
}

std::string describe_access(Access access, const void* address, size_t bytes) {
  char text[96];
  std::snprintf(text, sizeof text, "%s of %zu bytes at %p", access == Access::load ? "load" : "store", bytes, address);
  return text;
}

// The buffer that the access is in, or null; reports an access that leaves one.
struct Located {
  const DeviceMemory* buffer;
  bool allowed;
};
Located locate(Access access, const void* address, size_t bytes) {
  const auto* p = static_cast<const char*>(address);
  const auto& all = buffers();
  for (auto it = all.upper_bound(p + kBufferGuard); it != all.begin();) {
    --it;
    const DeviceMemory& memory = *it->second;
    const char* end = memory.data() + memory.size();
    if (p >= end + kBufferGuard) break;  // beyond it, hence beyond all before it
    if (p >= memory.data() && p + bytes <= end) return {&memory, true};
    if (p + bytes > memory.data() - kBufferGuard) {
      machine.fail(describe_access(access, address, bytes) + ", which leaves '" + memory.name() + "': it starts " +
                   std::to_string(p - memory.data()) + " bytes into its " + std::to_string(memory.size()));
      return {&memory, false};
    }
  }
  if (!machine.options().buffers_only) return {nullptr, true};
  machine.fail(describe_access(access, address, bytes) + ", which is in no buffer");
  return {nullptr, false};
}

bool aligned(const void* address, size_t bytes) {
  const size_t alignment = std::min<size_t>(bytes & (~bytes + 1), 16);  // the power of two in the size
  return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

}  // namespace

bool check_access(Access access, const void* address, size_t bytes) {
  if (!machine.running()) return true;
  Quiet quiet;
  machine.access_point();
  if (!aligned(address, bytes)) {
    machine.fail(describe_access(access, address, bytes) + ", which is not aligned");
    return false;
  }
  const Block* owner = shared_owner(address);
  Located located = {nullptr, true};
  if (owner) {
    if (!within_shared(*owner, address, bytes)) {
      machine.fail(describe_access(access, address, bytes) + ", which leaves its variable in shared memory");
      return false;
    }
  } else {
    located = locate(access, address, bytes);
    if (!located.allowed) return false;
  }
  if (machine.options().count) {
    Thread& self = machine.current();
    self.warp->requests.add(*self.block->grid->counts, access, owner != nullptr,
                            located.buffer ? &located.buffer->name() : nullptr, __builtin_return_address(0), self.lane,
                            address, unsigned(bytes));
  }
  return true;
}

bool check_shared_access(const void* address, size_t bytes) {
  Quiet quiet;
  const Block& block = *machine.current().block;
  if (in_shared(block, address) && within_shared(block, address, bytes) &&
      aligned(address, std::min<size_t>(bytes, 16))) {
    return true;
  }
  char text[96];
  std::snprintf(text, sizeof text, "%zu bytes at %p are not an aligned part of the block's shared memory", bytes,
                address);
  machine.fail(text);
  return false;
}

bool check_bulk_access(Access access, const void* address, size_t bytes) {
  Quiet quiet;
  machine.access_point();
  const Located located = locate(access, address, bytes);
  if (located.allowed && machine.options().count) {
    Counts& counts = *machine.current().block->grid->counts;
    const auto first = reinterpret_cast<uintptr_t>(address);
    add_traffic(counts, access, located.buffer ? located.buffer->name() : "",
                {1, bytes, 1, (first + bytes + 31) / 32 - first / 32});
    counts.bulk_bytes += bytes;
  }
  return located.allowed;
}

void create_shared_memory(Block& block) {
  const size_t bytes = shared_size(block);
  block.shared = static_cast<char*>(std::aligned_alloc(128, bytes));
  std::memset(block.shared, kPoison, bytes);
  poison_region(block.shared, bytes);
  unpoison_region(block.shared + kDynamicOffset, block.grid->launch.shared_bytes);
}

void check_shared_memory(Block& block) {
  const char* first = block.shared;
  for (const StaticVariable& variable : block.grid->variables) {
    const char* begin = block.shared + variable.offset;
    if (!poisoned(first, begin)) machine.fail("a write before the shared variable " + std::string(variable.name));
    first = begin + variable.bytes;
    if (!poisoned(first, first + kSharedGuard / 2)) {
      machine.fail("a write past the end of the shared variable " + std::string(variable.name));
    }
    first += kSharedGuard / 2;
  }
  const char* end = block.shared + kDynamicOffset + block.grid->launch.shared_bytes;
  if (!poisoned(end, end + kSharedGuard)) machine.fail("a write past the end of dynamic shared memory");
}

void poison_shared_memory(Block& block) {
  unpoison_region(block.shared, shared_size(block));
  std::memset(block.shared, kPoison, shared_size(block));
  poison_region(block.shared, shared_size(block));
}

void free_shared_memory(Block& block) {
  unpoison_region(block.shared, shared_size(block));
  std::free(block.shared);
}

void* static_shared(const void* key, const char* name, size_t bytes, size_t alignment) {
  Quiet quiet;
  Block& block = *machine.current().block;
  Grid& grid = *block.grid;
  for (const StaticVariable& variable : grid.variables) {
    if (variable.key != key) continue;
    unpoison_region(block.shared + variable.offset, bytes);
    return block.shared + variable.offset;
  }
  const size_t start = grid.variables.empty() ? kSharedGuard : grid.static_used;
  const size_t offset = round_up(start, std::max<size_t>(alignment, 16));
  grid.static_used = offset + bytes + kSharedGuard / 2;
  grid.static_bytes += bytes;
  if (grid.static_used > kDynamicOffset ||
      grid.static_bytes + grid.launch.shared_bytes > machine.options().device.shared_per_block_optin) {
    std::fprintf(stderr, "host executor: kernel %s needs more shared memory than a block has\n", grid.name.c_str());
    std::abort();
  }
  grid.variables.push_back({key, name, offset, bytes});
  unpoison_region(block.shared + offset, bytes);
  return block.shared + offset;
}

void* dynamic_shared() { return machine.current().block->shared + kDynamicOffset; }

void* cluster_peer(void* shared, unsigned rank) {
  Quiet quiet;
  Block& self = *machine.current().block;
  if (rank >= self.cluster->blocks.size() || !in_shared(self, shared)) {
    machine.fail("cluster_peer(" + std::to_string(rank) + ") of an address or rank that the cluster does not have");
    return shared;
  }
  Block& peer = self.cluster->blocks[rank];
  if (!peer.started) machine.fail("shared memory of a block of the cluster that may not have started");
  if (!peer.alive) machine.fail("shared memory of a block of the cluster that has exited");
  const size_t offset = size_t(static_cast<char*>(shared) - self.shared);
  const StaticVariable* variable = variable_at(*self.grid, offset);
  if (variable && peer.alive) unpoison_region(peer.shared + variable->offset, variable->bytes);
  return peer.shared + offset;
}

DeviceMemory::DeviceMemory(size_t bytes, size_t offset, std::string name) : size_(bytes), name_(std::move(name)) {
  Quiet quiet;
  memory_size_ = round_up(2 * kBufferGuard + offset + bytes, 256);
  memory_ = static_cast<char*>(std::aligned_alloc(256, memory_size_));
  std::memset(memory_, kPoison, memory_size_);
  data_ = memory_ + kBufferGuard + offset;
  poison_region(memory_, memory_size_);
  unpoison_region(data_, size_);
  buffers()[data_] = this;
}

DeviceMemory::~DeviceMemory() {
  buffers().erase(data_);
  unpoison_region(memory_, memory_size_);
  std::free(memory_);
}

bool DeviceMemory::guards_intact() const {
  return poisoned(memory_, data_) && poisoned(data_ + size_, memory_ + memory_size_);
}

void check_buffers() {
  for (const auto& [start, memory] : buffers()) {
    if (!memory->guards_intact()) machine.fail("something was written beside '" + memory->name() + "'");
  }
}

}  // namespace host_executor
