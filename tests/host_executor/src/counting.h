// Finds the warp requests behind the accesses of single threads, and counts what they move.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "host_executor/executor.h"
#include "host_executor/memory_access.h"

namespace host_executor {

// buffer: the name of the one that was accessed, or "".
void add_traffic(Counts& counts, Access access, const std::string& buffer, const Traffic& traffic);

// The accesses of one warp. Lanes run one after another here; on a device those at the same instruction would move
// together. The n-th execution of an instruction by each lane is taken for one request.
class RequestCounter {
 public:
  // buffer: the name of the one that the access is in, or null.
  void add(Counts& counts, Access access, bool shared, const std::string* buffer, const void* instruction, int lane,
           const void* address, unsigned bytes);
  // Counts the requests that have not seen all lanes.
  void finish(Counts& counts);

 private:
  struct Request {
    unsigned lanes = 0;
    unsigned bytes = 0;
    Access access = Access::load;
    bool shared = false;
    std::string buffer;
    uint64_t address[32];
  };
  struct Instruction {
    uint32_t executions[32] = {};
    std::unordered_map<uint32_t, Request> open;  // by number of execution
  };
  static void count(Counts& counts, const Request& request);

  std::unordered_map<const void*, Instruction> instructions_;
};

}  // namespace host_executor
