// How a tensor's elements lie in memory, as the kernels need to know it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include "kernels/dropout/stream.h"
#include "operators/results.h"

namespace fastreg {

// Same shape, and each element at the same place relative to the first.
inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// A kernel-level write that autograd has to hear of: whoever saved the tensor before sees that it changed.
inline void mark_written(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// Where the draws of a dense tensor lie that draws once per index of its leading `dims` dimensions: some of these
// dimensions outermost, the others innermost, each in order, all else between them. nullopt for any other tensor.
inline std::optional<FeatureMap> feature_map(const at::Tensor& x, int64_t dims) {
  if (!x.is_non_overlapping_and_dense()) return std::nullopt;
  if (x.numel() == 0) return FeatureMap{1, 1};
  const auto in_order = [&](int64_t begin, int64_t end, int64_t stride) {
    for (int64_t d = end; d-- > begin; stride *= x.size(d))
      if (x.size(d) > 1 && x.stride(d) != stride) return false;
    return true;
  };
  int64_t period = x.numel(), width = 1;
  for (int64_t d = 0; d < dims; ++d) period /= x.size(d);
  for (int64_t outer = dims; outer >= 0; --outer) {
    if (in_order(0, outer, period) && in_order(outer, dims, 1)) return FeatureMap{period, width};
    if (outer > 0) period *= x.size(outer - 1), width *= x.size(outer - 1);
  }
  return std::nullopt;
}

// A batch norm operand [N, C, ...] as the kernels see it: [planes, channels, size] where memory is contiguous, or
// rows of channels, [planes * size, channels], where the channels lie next to each other.
struct ChannelLayout {
  int64_t planes, channels, size;
  bool channels_last;

  int64_t per_channel() const { return planes * size; }
};

// The layout of a dense tensor with N outermost and C next to it or innermost, or of an empty one; nullopt for any
// other.
inline std::optional<ChannelLayout> channel_layout(const at::Tensor& x) {
  const int64_t planes = x.size(0), channels = x.size(1);
  int64_t size = 1;
  for (int64_t d = 2; d < x.dim(); ++d) size *= x.size(d);
  if (x.numel() == 0) return ChannelLayout{planes, channels, size, false};

  // Expected strides, from the innermost dimension out; dimensions of size one have no say.
  const auto spatial_is_dense = [&](int64_t stride) {
    for (int64_t d = x.dim() - 1; d >= 2; --d) {
      if (x.size(d) > 1 && x.stride(d) != stride) return false;
      stride *= x.size(d);
    }
    return true;
  };
  if (planes > 1 && x.stride(0) != channels * size) return std::nullopt;
  if ((channels == 1 || x.stride(1) == size) && spatial_is_dense(1))
    return ChannelLayout{planes, channels, size, size == 1 && channels > 1};
  if ((channels == 1 || x.stride(1) == 1) && spatial_is_dense(channels))
    return ChannelLayout{planes, channels, size, true};
  return std::nullopt;
}

// The memory format of what torch's batch norm returns on the input's device. Where dimensions of size one make it
// ambiguous, the CPU's prefers contiguous, and cuDNN's asks the strides alone.
inline at::MemoryFormat normalized_format(const at::Tensor& input) {
  if (!input.is_cuda()) {
    for (const auto format :
         {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast, at::MemoryFormat::ChannelsLast3d})
      if (input.is_contiguous(format)) return format;
  }
  return input.suggest_memory_format();
}
// The strides of that: of batch norm's results, and of its gradients. channel_layout accepts them.
inline c10::DimVector normalized_strides(const at::Tensor& input) {
  return standard_strides(input.sizes(), normalized_format(input) != at::MemoryFormat::Contiguous);
}

// A new result of batch norm.
inline at::Tensor empty_normalized_like(const at::Tensor& input) {
  return empty_result(input.sizes(), normalized_strides(input), input);
}
// input, or a copy of it, with its elements where those of results are.
inline at::Tensor in_normalized_layout(const at::Tensor& input) {
  const c10::DimVector strides = normalized_strides(input);
  for (int64_t d = 0; d < input.dim(); ++d)
    if (input.size(d) > 1 && input.stride(d) != strides[size_t(d)])
      return at::empty_strided(input.sizes(), strides, input.options()).copy_(input);
  return input;
}

// x, or a copy of it, in a layout that channel_layout accepts.
inline at::Tensor with_channel_layout(const at::Tensor& x) { return channel_layout(x) ? x : in_normalized_layout(x); }

// `tensor`, or a copy of it, in the layout of `like`, which is dense.
inline at::Tensor with_layout_of(const at::Tensor& tensor, const at::Tensor& like) {
  return same_layout(tensor, like) ? tensor : at::empty_like(like, tensor.options()).copy_(tensor);
}

}  // namespace fastreg
