// Dropout on the CPU: torch's side of it.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "../checks.h"
#include "../dispatch.h"
#include "../layout.h"
#include "kernels.h"

namespace fastreg::cpu {
namespace {

using at::Tensor;

// Elements that are worth another thread; a multiple of the 64 that the kernels take at a time.
constexpr int64_t kGrain = 32768;

// x to y, which may be the same memory: both dense, in the same memory order.
void apply(const Tensor& x, const Tensor& y, double p, RandomState state, IndexMap map) {
  const DropoutArguments arguments = {state, drop_threshold(p), keep_scale(p), map};
  dispatch_floating(x.scalar_type(), "dropout", [&](auto tag) {
    using T = decltype(tag);
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    const auto kernel = kernels<T>().dropout;
    const int64_t pieces = (x.numel() + kGrain - 1) / kGrain;
    at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      kernel(from, to, begin * kGrain, std::min(end * kGrain, x.numel()), arguments);
    });
  });
}

// Into y, dense and fresh: directly where the memory orders agree, else by a copy first.
Tensor apply_into(Tensor y, const Tensor& input, double p, RandomState state, IndexMap map) {
  if (input.is_non_overlapping_and_dense() && same_layout(input, y)) {
    apply(input, y, p, state, map);
  } else {
    y.copy_(input);
    apply(y, y, p, state, map);
  }
  return y;
}

void apply_in_place(Tensor& input, double p, RandomState state, IndexMap map) {
  if (input.is_non_overlapping_and_dense()) {
    apply(input, input, p, state, map);
    mark_written(input);
  } else {
    input.copy_(apply_into(at::empty_like(input), input, p, state, map));
  }
}

RandomState read_state(const Tensor& rng_state) {
  const auto values = rng_state.accessor<int64_t, 1>();
  return RandomState{uint64_t(values[0]), uint64_t(values[1])};
}

// A fresh state from the default generator. The seed is the value that
// torch.randint(-2**63, 2**63 - 1, ()) would have drawn in its place.
Tensor draw_state(const Tensor& input, double p) {
  Tensor rng_state = at::empty({2}, input.options().dtype(at::kLong).memory_format(std::nullopt));
  uint64_t seed = 0;
  if (input.numel() > 0 && p > 0.0 && p < 1.0) {
    auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
    const std::lock_guard<std::mutex> lock(generator->mutex_);
    seed = generator->random64() % ~uint64_t(0) - (uint64_t(1) << 63);
  }
  auto* values = rng_state.mutable_data_ptr<int64_t>();
  values[0] = int64_t(seed);
  values[1] = 0;
  return rng_state;
}

Tensor dropout(const Tensor& input, double p, const Tensor& rng_state, at::OptionalIntArrayRef strides,
               at::OptionalIntArrayRef index_map) {
  check_dropout(input, p);
  check_rng_state(rng_state, input);
  const IndexMap map = index_map_for(input, index_map);
  TORCH_CHECK_VALUE(!strides || int64_t(strides->size()) == input.dim(), "dropout: strides must have ", input.dim(),
                    " entries, got ", strides->size());
  const Tensor y = strides ? at::empty_strided(input.sizes(), *strides, input.options()) : at::empty_like(input);
  TORCH_CHECK_VALUE(y.is_non_overlapping_and_dense(), "dropout: strides must be those of a dense tensor, got ",
                    y.strides(), " for shape ", y.sizes());
  return apply_into(y, input, p, read_state(rng_state), map);
}

void dropout_(Tensor& input, double p, const Tensor& rng_state, at::OptionalIntArrayRef index_map) {
  check_dropout(input, p);
  check_rng_state(rng_state, input);
  apply_in_place(input, p, read_state(rng_state), index_map_for(input, index_map));
}

std::tuple<Tensor, Tensor> dropout_seeded(const Tensor& input, double p, at::OptionalIntArrayRef index_map) {
  check_dropout(input, p);
  const IndexMap map = index_map_for(input, index_map);
  Tensor rng_state = draw_state(input, p);
  return {apply_into(at::empty_like(input), input, p, read_state(rng_state), map), rng_state};
}

Tensor dropout_seeded_(Tensor& input, double p, at::OptionalIntArrayRef index_map) {
  check_dropout(input, p);
  const IndexMap map = index_map_for(input, index_map);
  Tensor rng_state = draw_state(input, p);
  apply_in_place(input, p, read_state(rng_state), map);
  return rng_state;
}

}  // namespace
}  // namespace fastreg::cpu

TORCH_LIBRARY_IMPL(fastreg, CPU, m) {
  m.impl("dropout", TORCH_FN(fastreg::cpu::dropout));
  m.impl("dropout_", TORCH_FN(fastreg::cpu::dropout_));
  m.impl("dropout_seeded", TORCH_FN(fastreg::cpu::dropout_seeded));
  m.impl("dropout_seeded_", TORCH_FN(fastreg::cpu::dropout_seeded_));
}
