// The dropout operators, for any backend: argument checks, memory order, allocation.
//
// A Backend provides
//   Call(input)                         makes input's device current while it lives, and holds what launches need
//   call.given(rng_state)            -> State of a tensor that the caller gave
//   call.drawn(rng_state)            -> State drawn from the device's generator, recorded in the new tensor rng_state
//   call.apply(x, y, p, state, map)     y = dropout(x), both dense, in the same memory order, maybe the same memory
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"

namespace fastreg {

template <class Backend>
struct DropoutOperators {
  using Tensor = at::Tensor;
  using Call = typename Backend::Call;
  using State = typename Backend::State;

  static Tensor dropout(const Tensor& input, double p, const Tensor& rng_state, at::OptionalIntArrayRef strides,
                        at::OptionalIntArrayRef index_map) {
    check_dropout(input, p);
    check_rng_state(rng_state, input);
    const IndexMap map = index_map_for(input, index_map);
    TORCH_CHECK_VALUE(!strides || int64_t(strides->size()) == input.dim(), "dropout: strides must have ", input.dim(),
                      " entries, got ", strides->size());
    Call call(input);
    Tensor output = strides ? at::empty_strided(input.sizes(), *strides, input.options()) : at::empty_like(input);
    TORCH_CHECK_VALUE(output.is_non_overlapping_and_dense(), "dropout: strides must be those of a dense tensor, got ",
                      output.strides(), " for shape ", output.sizes());
    apply_into(call, output, input, p, call.given(rng_state), map);
    return output;
  }

  static void dropout_(Tensor& input, double p, const Tensor& rng_state, at::OptionalIntArrayRef index_map) {
    check_dropout(input, p);
    check_rng_state(rng_state, input);
    at::assert_no_internal_overlap(input);
    const IndexMap map = index_map_for(input, index_map);
    Call call(input);
    apply_in_place(call, input, p, call.given(rng_state), map);
  }

  static std::tuple<Tensor, Tensor> dropout_seeded(const Tensor& input, double p, at::OptionalIntArrayRef index_map) {
    check_dropout(input, p);
    const IndexMap map = index_map_for(input, index_map);
    Call call(input);
    auto [state, rng_state] = draw(call, input, p);
    Tensor output = at::empty_like(input);
    apply_into(call, output, input, p, state, map);
    return {output, rng_state};
  }

  static Tensor dropout_seeded_(Tensor& input, double p, at::OptionalIntArrayRef index_map) {
    check_dropout(input, p);
    at::assert_no_internal_overlap(input);
    const IndexMap map = index_map_for(input, index_map);
    Call call(input);
    auto [state, rng_state] = draw(call, input, p);
    apply_in_place(call, input, p, state, map);
    return rng_state;
  }

  static void register_in(torch::Library& m) {
    m.impl("dropout", TORCH_FN(dropout));
    m.impl("dropout_", TORCH_FN(dropout_));
    m.impl("dropout_seeded", TORCH_FN(dropout_seeded));
    m.impl("dropout_seeded_", TORCH_FN(dropout_seeded_));
  }

 private:
  // Where nothing is left to chance, nothing is drawn: the generator stays as it is.
  static std::pair<State, Tensor> draw(Call& call, const Tensor& input, double p) {
    const auto options = at::TensorOptions().dtype(at::kLong).device(input.device());
    if (input.numel() == 0 || p == 0.0 || p == 1.0) return {State{}, at::zeros({2}, options)};
    Tensor rng_state = at::empty({2}, options);
    const State state = call.drawn(rng_state);
    return {state, rng_state};
  }

  // Into `output`, dense and fresh: directly where the memory orders agree, else by a copy first.
  static void apply_into(Call& call, const Tensor& output, const Tensor& input, double p, const State& state,
                         const IndexMap& map) {
    if (input.is_non_overlapping_and_dense() && same_layout(input, output)) {
      call.apply(input, output, p, state, map);
    } else {
      output.copy_(input);
      call.apply(output, output, p, state, map);
    }
  }

  static void apply_in_place(Call& call, const Tensor& input, double p, const State& state, const IndexMap& map) {
    if (input.is_non_overlapping_and_dense()) {
      call.apply(input, input, p, state, map);
      mark_written(input);
    } else {
      const Tensor dense = at::empty_like(input);
      apply_into(call, dense, input, p, state, map);
      input.copy_(dense);
    }
  }
};

}  // namespace fastreg
