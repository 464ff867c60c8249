// What the operators demand of their arguments: enough that no call, however odd, reads or writes out of bounds.
// fastreg/functional raises the finer-grained errors that users see.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>

#include "kernels/dropout/stream.h"
#include "operators/dispatch.h"

namespace fastreg {

inline void check_dropout(const char* op, const at::Tensor& input, double p) {
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), op, ": input must be floating-point, got ", input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [](auto) {});  // refuses what no kernel takes
  TORCH_CHECK_VALUE(p >= 0.0 && p <= 1.0, op, ": p must lie in [0, 1], got ", p);
}

inline void check_rng_state(const char* op, const at::Tensor& state, const at::Tensor& input) {
  TORCH_CHECK_TYPE(state.scalar_type() == at::kLong, op, ": rng_state must be int64, got ", state.scalar_type());
  TORCH_CHECK_VALUE(state.dim() == 1 && state.size(0) == 2, op, ": rng_state must have shape [2], got ", state.sizes());
  TORCH_CHECK(state.device() == input.device() || state.device().is_cpu(), op, ": rng_state must be on ",
              input.device(), " or the CPU, got ", state.device());
}

inline IndexMap index_map_for(const char* op, at::OptionalIntArrayRef map, int64_t draws) {
  if (!map) return IndexMap{0, std::max<int64_t>(draws, 1), 0};
  TORCH_CHECK_VALUE(map->size() == 3 && (*map)[0] >= 0 && (*map)[1] > 0 && (*map)[2] >= 0, op,
                    ": index_map must be (first >= 0, row > 0, row_stride >= 0), got ", *map);
  return IndexMap{(*map)[0], (*map)[1], (*map)[2]};
}

inline DropTransform drop_transform_for(const char* op, std::optional<at::ArrayRef<double>> transform, double p) {
  if (!transform) return DropTransform{keep_scale(p)};
  TORCH_CHECK_VALUE(transform->size() == 3, op, ": transform must be (scale, shift, fill), got ", *transform);
  return DropTransform{(*transform)[0], (*transform)[1], (*transform)[2]};
}

inline void check_dims(const char* op, int64_t dims, const at::Tensor& input) {
  TORCH_CHECK_VALUE(dims >= 1 && dims <= input.dim(), op, ": dims must lie in [1, ", input.dim(),
                    "], the number of the input's dimensions, got ", dims);
}

inline void check_residual(const char* op, const at::Tensor& residual, const at::Tensor& input) {
  TORCH_CHECK(residual.sizes() == input.sizes(), op, ": residual must have the input's shape ", input.sizes(), ", got ",
              residual.sizes());
  TORCH_CHECK(residual.scalar_type() == input.scalar_type() && residual.device() == input.device(), op,
              ": residual must be ", input.scalar_type(), " on ", input.device(), " as the input, got ",
              residual.scalar_type(), " on ", residual.device());
}

// What torch demands of a tensor that is to be modified; autograd's demands come before.
inline void check_writable(const char* op, const at::Tensor& input) {
  at::assert_no_internal_overlap(input);
  TORCH_CHECK(!input.is_inference() || c10::InferenceMode::is_enabled(), op,
              ": input must not be an inference tensor where it is modified outside InferenceMode, got one");
}

inline void check_batch_norm_input(const char* op, const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() >= 2, op, ": input must have at least 2 dimensions, got ", input.dim());
}

// A parameter or statistic: on the input's device, of a dtype that the input goes with.
inline void check_parameter(const char* op, const char* name, const at::Tensor& t, const at::Tensor& input) {
  TORCH_CHECK(t.device() == input.device(), op, ": ", name, " must be on ", input.device(), ", got ", t.device());
  TORCH_CHECK(
      t.scalar_type() == input.scalar_type() ||
          (t.scalar_type() == at::kFloat && (input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16)),
      op, ": ", name, " must be of the input's dtype", input.scalar_type() == at::kDouble ? "" : " or float32",
      ", got ", t.scalar_type(), " with input ", input.scalar_type());
}
// Likewise, and one value per channel.
inline void check_per_channel(const char* op, const char* name, const at::Tensor& t, const at::Tensor& input) {
  TORCH_CHECK(t.dim() == 1 && t.size(0) == input.size(1), op, ": ", name, " must have shape [", input.size(1),
              "], one value per channel of input, got ", t.sizes());
  check_parameter(op, name, t, input);
}
inline void check_per_channel(const char* op, const char* name, const std::optional<at::Tensor>& t,
                              const at::Tensor& input) {
  if (t && t->defined()) check_per_channel(op, name, *t, input);
}

inline void check_not_differentiable(const char* op, const char* name, const std::optional<at::Tensor>& t) {
  TORCH_CHECK(!t || !t->defined() || !t->requires_grad(), op, ": ", name,
              " must not require grad, got requires_grad=True");
}

// Whether two tensors, at least one of them of one dimension, may have an element in common. Exact for slices of equal
// stride, such as the columns of a matrix; else any overlap of the memory that they span counts.
inline bool may_overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !a.storage().is_alias_of(b.storage())) return false;
  const auto span = [](const at::Tensor& t) {
    const auto* first = static_cast<const char*>(t.const_data_ptr());
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return std::pair(first, first + (last + 1) * int64_t(t.element_size()));
  };
  const auto [a_begin, a_end] = span(a);
  const auto [b_begin, b_end] = span(b);
  if (a_end <= b_begin || b_end <= a_begin) return false;
  if (a.dim() != 1 || b.dim() != 1 || a.scalar_type() != b.scalar_type() || a.stride(0) != b.stride(0)) return true;
  return a.stride(0) == 0 || (b_begin - a_begin) % (a.stride(0) * int64_t(a.element_size())) == 0;
}

// A tensor that is written to shares no memory with one that is read or written beside it.
inline void check_apart(const char* op, const char* name, const at::Tensor& written, const char* other_name,
                        const at::Tensor& other) {
  TORCH_CHECK(!written.defined() || !other.defined() || !may_overlap(written, other), op, ": ", name,
              " must not share memory with ", other_name, ", got overlapping tensors");
}

// Without a momentum the average is cumulative and needs the count.
inline void check_momentum(const char* op, std::optional<double> momentum, const at::Tensor& count,
                           const at::Tensor& input) {
  if (!count.defined()) {
    TORCH_CHECK_VALUE(momentum, op, ": momentum must be given where num_batches_tracked is not, got None");
    return;
  }
  TORCH_CHECK(count.scalar_type() == at::kLong && count.numel() == 1 && count.device() == input.device(), op,
              ": num_batches_tracked must be one int64 value on ", input.device(), ", got ", count.scalar_type(), " ",
              count.sizes(), " on ", count.device());
}

inline void check_grad_output(const char* op, const at::Tensor& grad, const at::Tensor& input) {
  TORCH_CHECK(grad.sizes() == input.sizes(), op, ": grad_output must have the input's shape ", input.sizes(), ", got ",
              grad.sizes());
  TORCH_CHECK(grad.scalar_type() == input.scalar_type() && grad.device() == input.device(), op,
              ": grad_output must have the input's dtype and device, got ", grad.scalar_type(), " on ", grad.device());
}

inline void check_stats(const at::Tensor& stats, const at::Tensor& input, at::ScalarType dtype) {
  TORCH_CHECK(stats.dim() == 2 && stats.size(0) == 3 && stats.size(1) == input.size(1) && stats.is_contiguous() &&
                  stats.scalar_type() == dtype && stats.device() == input.device(),
              "batch_norm: stats must be a contiguous ", dtype, " tensor of shape [3, ", input.size(1), "] on ",
              input.device(), ", got ", stats.scalar_type(), " ", stats.sizes(), " on ", stats.device());
}

}  // namespace fastreg
