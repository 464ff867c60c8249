// Launch functions of the dropout kernels.
#pragma once

#include "kernels/common/runtime.h"
#include "kernels/common/types.h"
#include "kernels/dropout/stream.h"

namespace fastreg {

// Where the kernel finds its random state: values known at launch, or device memory (a tensor, or a generator whose
// state advances from one replay of a CUDA graph to the next).
struct StateSource {
  const int64_t* seed_pointer = nullptr;    // if set, the seed is there and `seed` is not used
  const int64_t* offset_pointer = nullptr;  // if set, what is there is added to `offset`
  uint64_t seed = 0;
  uint64_t offset = 0;
  int64_t* used = nullptr;  // if set, the kernel writes the (seed, offset) that it used
};

using DropoutParameters = DropoutCall<StateSource>;

// y = dropout(x), n elements, x == y allowed. Any alignment that T itself needs; fastest where both are 16-byte
// aligned and the elements stand together in the stream from a multiple of 8 on. One launch.
template <class T>
cudaError_t launch_dropout(const T* x, T* y, int64_t n, const DropoutParameters& parameters, const Device& device);

}  // namespace fastreg
