// Checks of addresses, shared between plain accesses and asynchronous copies.
#pragma once

#include <cstddef>

#include "host_executor/memory_access.h"

namespace host_executor {

// Within a variable, or the dynamic part, of this block's shared memory; reports otherwise.
bool check_shared_access(const void* address, size_t bytes);
// Within one buffer, if in any; counts the bytes.
bool check_bulk_access(Access access, const void* address, size_t bytes);

}  // namespace host_executor
