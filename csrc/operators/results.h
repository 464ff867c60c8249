// New tensors for the results of operators.
//
// Large ones on the CPU come from a cache of buffers, as torch's CUDA tensors do: memory that the system hands out
// afresh has to be zeroed page by page at the first touch, which costs as much as the layers' own work. Of the buffers
// that are not in use all but some that were used last are marked as free (MADV_FREE): the system takes their pages
// when it runs short of memory, and until then the next result finds them in place, for no more than the call.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastreg {

// at::empty_like(x), at::empty_strided(sizes, strides, x.options()).
at::Tensor empty_result_like(const at::Tensor& x);
at::Tensor empty_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& x);

// The bytes of the buffers that are not in use; and give them back to the system.
int64_t cached_bytes();
void empty_cache();

}  // namespace fastreg
