// Thrown where a test asks for counts of accesses: its kernels have run without an error, the rest of it is left out.
#pragma once

#include <stdexcept>

namespace host_executor {

struct NotCounted : std::runtime_error {
  NotCounted() : std::runtime_error("a GPU does not count accesses") {}
};

}  // namespace host_executor
