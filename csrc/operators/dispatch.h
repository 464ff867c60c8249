// From a tensor's run-time dtype to the element type that the kernels are templates over.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/common/types.h"

namespace fastreg {

// Calls f(T{}) with T the element type that stands for `dtype`.
template <class F>
decltype(auto) dispatch_floating(at::ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kHalf:
      return f(half{});
    case at::kBFloat16:
      return f(bfloat16{});
    default:
      TORCH_CHECK(false, op, ": input must be float32, float64, float16 or bfloat16, got ", dtype);
  }
}

// The dtype that arithmetic on `dtype` is done in.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// The elements of a tensor whose dtype is already known to be T's.
template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* const_data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace fastreg
