// New tensors for the results of operators.
//
// Large ones on the CPU come from a cache of buffers, as torch's CUDA tensors do: memory that the system hands out
// afresh has to be zeroed page by page at the first touch, which costs as much as the layers' own work. Of the buffers
// that are not in use all but some that were used last are marked as free (MADV_FREE): the system takes their pages
// when it runs short of memory, and until then the next result finds them in place, for no more than the call.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace fastreg {

// The strides of a contiguous or channels-last tensor.
inline c10::DimVector standard_strides(at::IntArrayRef sizes, bool channels_last) {
  c10::DimVector strides(sizes.size());
  int64_t stride = 1;
  const auto next_outer = [&](size_t d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_last) next_outer(1);
  for (size_t d = sizes.size(); d-- > (channels_last ? 2 : 0);) next_outer(d);
  if (channels_last) next_outer(0);
  return strides;
}

// What torch's elementwise operations return for x: at::empty_like(x), but for the strides of dimensions of size one.
at::Tensor empty_result_like(const at::Tensor& x);
// at::empty_strided(sizes, strides, x.options()).
at::Tensor empty_result(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& x);

// The bytes of the buffers that are not in use; and give them back to the system.
int64_t cached_bytes();
void empty_cache();

}  // namespace fastreg
