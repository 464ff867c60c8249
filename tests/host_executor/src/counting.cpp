#include "counting.h"

#include <algorithm>
#include <set>
#include <vector>

namespace host_executor {
namespace {

constexpr uint64_t kSector = 32;
constexpr uint64_t kBanks = 32, kBankBytes = 4;

// Distinct 32-byte pieces that the lanes touch.
uint64_t count_sectors(const std::vector<uint64_t>& addresses, unsigned bytes) {
  std::vector<uint64_t> sectors;
  for (const uint64_t address : addresses) {
    for (uint64_t s = address / kSector; s <= (address + bytes - 1) / kSector; ++s) sectors.push_back(s);
  }
  std::sort(sectors.begin(), sectors.end());
  return uint64_t(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
}

// Cycles beyond the first of each group of lanes that shared memory serves together: 32 lanes of up to 4 bytes, 16 of
// 8, 8 of 16. A cycle delivers one word per bank; lanes that want the same word share it.
uint64_t count_conflicts(const std::vector<uint64_t>& addresses, unsigned bytes) {
  const size_t group = std::min<size_t>(32, 128 / std::max(bytes, 4u));
  uint64_t conflicts = 0;
  for (size_t first = 0; first < addresses.size(); first += group) {
    std::set<uint64_t> words[kBanks];
    for (size_t i = first; i < std::min(first + group, addresses.size()); ++i) {
      for (uint64_t w = addresses[i] / kBankBytes; w <= (addresses[i] + bytes - 1) / kBankBytes; ++w) {
        words[w % kBanks].insert(w);
      }
    }
    size_t cycles = 1;
    for (const auto& bank : words) cycles = std::max(cycles, bank.size());
    conflicts += cycles - 1;
  }
  return conflicts;
}

}  // namespace

void add_traffic(Counts& counts, Access access, const std::string& buffer, const Traffic& traffic) {
  const bool load = access == Access::load;
  (load ? counts.load : counts.store) += traffic;
  if (!buffer.empty()) (load ? counts.load_of : counts.store_of)[buffer] += traffic;
}

void RequestCounter::add(Counts& counts, Access access, bool shared, const std::string* buffer, const void* instruction,
                         int lane, const void* address, unsigned bytes) {
  Instruction& executed = instructions_[instruction];
  const uint32_t number = executed.executions[lane]++;
  Request& request = executed.open[number];
  request.access = access;
  request.shared = shared;
  if (buffer && request.buffer.empty()) request.buffer = *buffer;
  request.bytes = bytes;
  request.lanes |= 1u << lane;
  request.address[lane] = reinterpret_cast<uint64_t>(address);
  if (request.lanes == 0xFFFFFFFFu) {
    count(counts, request);
    executed.open.erase(number);
  }
}

void RequestCounter::finish(Counts& counts) {
  for (const auto& [address, instruction] : instructions_) {
    for (const auto& [number, request] : instruction.open) count(counts, request);
  }
  instructions_.clear();
}

void RequestCounter::count(Counts& counts, const Request& request) {
  std::vector<uint64_t> addresses;
  for (int lane = 0; lane < 32; ++lane) {
    if (request.lanes >> lane & 1) addresses.push_back(request.address[lane]);
  }
  if (request.shared) {
    counts.shared_requests += 1;
    counts.bank_conflicts += count_conflicts(addresses, request.bytes);
    return;
  }
  Traffic traffic;
  traffic.accesses = addresses.size();
  traffic.bytes = addresses.size() * request.bytes;
  traffic.requests = 1;
  traffic.sectors = count_sectors(addresses, request.bytes);
  add_traffic(counts, request.access, request.buffer, traffic);
}

}  // namespace host_executor
