// Which tensors fastreg computes with where torch's own operators are patched.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastreg {

using at::Tensor;
using c10::DispatchKey;

#if defined(FASTREG_WITH_CUDA)
constexpr bool kTakesCuda = true;
#else
constexpr bool kTakesCuda = false;
#endif

// Whether a Python object is a tensor that has its own dispatch and only pretends to have values: patch_torch sets it.
inline bool (*is_plain_object)(void*) = nullptr;

inline bool has_own_dispatch(const Tensor& t) { return t.key_set().has(DispatchKey::Python); }
// By torch.func.functionalize, which takes no operator of fastreg's that writes to its arguments.
inline bool is_functionalized(const Tensor& t) { return t.key_set().has(DispatchKey::Functionalize); }
inline bool is_wrapped_by_transform(const Tensor& t) {
  return t.key_set().has_any(c10::DispatchKeySet(
      {DispatchKey::FuncTorchGradWrapper, DispatchKey::FuncTorchBatched, DispatchKey::Functionalize}));
}

// Of a tensor that has_own_dispatch.
inline bool is_plain(const Tensor& t) {
  auto* object = t.unsafeGetTensorImpl()->pyobj_slot()->load_pyobj();
  return object && is_plain_object(object);
}

inline bool has_names([[maybe_unused]] const Tensor& x) {
#if __has_include(<ATen/core/NamedTensor.h>)  // later torch has no such tensors
  return x.has_names();
#else
  return false;
#endif
}

inline bool has_kernels_for(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
}

// Why fastreg does not compute with x, or null.
inline const char* why_not(const Tensor& x) {
  const auto keys = x.key_set();
  if (keys.has(DispatchKey::Python) && !is_plain(x)) return "a tensor subclass with a dispatch of its own";
  if (x.is_nested()) return "nested";
  if (!x.is_cpu() && !(kTakesCuda && x.is_cuda())) return "a device without kernels";
  if (!has_kernels_for(x.scalar_type())) return "a dtype without kernels";
  if (x.layout() != at::kStrided) return "not strided";
  if (keys.has(DispatchKey::ZeroTensor)) return "zeros without memory";
  if (has_names(x)) return "named dimensions";
  return nullptr;
}

}  // namespace fastreg
