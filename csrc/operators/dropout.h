// The dropout operators, for any backend: argument checks, memory order, allocation.
//
// A Backend provides
//   Call(input)                  makes input's device current while it lives, and holds what launches need
//   call.given(rng_state)     -> State of a tensor that the caller gave
//   call.drawn(rng_state, generator) -> State drawn from the generator, none: the device's own; recorded in the new
//                                tensor rng_state, on CUDA by the launch that uses it
//   call.apply(x, y, drop)       y = dropout(x), both dense, in the same memory order, maybe the same memory;
//                                drop: DropoutCall<State>
//   call.apply_features(x, residual, y, features, drop)   the same with a FeatureMap's draws; residual: in the memory
//                                order of x and y, or undefined
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "operators/checks.h"
#include "operators/layout.h"
#include "operators/results.h"

namespace fastreg {

// The dropout in one call of an operator: its part of the arguments, checked, and what they mean to the kernels.
template <class Backend>
class Drop {
 public:
  // draws: how many there are to make.
  Drop(const char* op, const at::Tensor& input, double p, int64_t draws, at::OptionalIntArrayRef index_map,
       std::optional<at::ArrayRef<double>> transform)
      : backend(input), op_(op), input_(input) {
    check_dropout(op, input, p);
    call.threshold = drop_threshold(p);
    call.transform = drop_transform_for(op, transform, p);
    call.map = index_map_for(op, index_map, draws);
    // Where nothing is left to chance, nothing is drawn: the generator stays as it is.
    is_random_ = input.numel() != 0 && p != 0.0 && p != 1.0;
  }

  void use(const at::Tensor& rng_state) {
    check_rng_state(op_, rng_state, input_);
    call.state = backend.given(rng_state);
  }

  at::Tensor draw(const std::optional<at::Generator>& generator = std::nullopt) {
    const auto options = at::TensorOptions().dtype(at::kLong).device(input_.device());
    if (!is_random_) return at::zeros({2}, options);
    at::Tensor rng_state = at::empty({2}, options);
    call.state = backend.drawn(rng_state, generator);
    return rng_state;
  }

  typename Backend::Call backend;
  DropoutCall<typename Backend::State> call{};

 private:
  const char* op_;
  at::Tensor input_;
  bool is_random_;
};

// How many draws dropout makes: one per index of the leading `dims` dimensions, or one per element.
inline int64_t draws_of(const char* op, const at::Tensor& input, std::optional<int64_t> dims) {
  if (!dims) return input.numel();
  check_dims(op, *dims, input);
  return c10::multiply_integers(input.sizes().slice(0, size_t(*dims)));
}

// A new tensor like input, in whose memory order dropout numbers the elements: that of empty_like(input), or as the
// caller says.
inline at::Tensor numbered_output(const char* op, const at::Tensor& input, at::OptionalIntArrayRef strides) {
  if (!strides) return empty_result_like(input);
  TORCH_CHECK_VALUE(int64_t(strides->size()) == input.dim(), op, ": strides must have ", input.dim(), " entries, got ",
                    strides->size());
  const at::Tensor output = empty_result(input.sizes(), *strides, input);
  TORCH_CHECK_VALUE(output.is_non_overlapping_and_dense(), op, ": strides must be those of a dense tensor, got ",
                    output.strides(), " for shape ", output.sizes());
  return output;
}

template <class Backend>
class DropoutOperators {
  using Tensor = at::Tensor;
  using MaybeTensor = std::optional<at::Tensor>;
  using MaybeInts = at::OptionalIntArrayRef;
  using MaybeDoubles = std::optional<at::ArrayRef<double>>;

  // One call of an operator: its arguments, checked, and what they mean.
  class Operation {
   public:
    // dims: draw once per index of so many leading dimensions; nullopt: once per element, in memory order.
    Operation(const Tensor& input, std::optional<int64_t> dims, double p, MaybeInts index_map, MaybeDoubles transform,
              const MaybeTensor& residual = std::nullopt)
        : input_(input),
          dims_(dims),
          drop_(name(dims), input, p, draws_of(name(dims), input, dims), index_map, transform) {
      if (residual && residual->defined()) {
        check_residual(name(dims), *residual, input);
        residual_ = *residual;
      }
    }

    void use(const Tensor& rng_state) { drop_.use(rng_state); }
    Tensor draw() { return drop_.draw(); }

    // Into `output`, dense and fresh: directly where the memory orders agree, else by a copy first.
    const Tensor& into(const Tensor& output) {
      if (!takes(output)) return output.copy_(into(like(output)));
      if (input_.is_non_overlapping_and_dense() && same_layout(input_, output)) {
        apply(input_, output);
      } else {
        output.copy_(input_);
        apply(output, output);
      }
      return output;
    }

    void in_place() {
      if (takes(input_)) {
        apply(input_, input_);
        mark_written(input_);
      } else {
        input_.copy_(into(like(input_)));
      }
    }

   private:
    static const char* name(std::optional<int64_t> dims) { return dims ? "feature_dropout" : "dropout"; }

    // Whether the kernels know the memory order of x, and a new tensor in one that they do.
    bool takes(const Tensor& x) const {
      return dims_ ? bool(feature_map(x, *dims_)) : x.is_non_overlapping_and_dense();
    }
    Tensor like(const Tensor& x) const {
      return at::empty_like(x, dims_ ? at::MemoryFormat::Contiguous : at::MemoryFormat::Preserve);
    }

    void apply(const Tensor& x, const Tensor& y) {
      if (!dims_) return drop_.backend.apply(x, y, drop_.call);
      const FeatureMap features = *feature_map(y, *dims_);
      if (features.period == features.width && !residual_.defined())
        return drop_.backend.apply(x, y, drop_.call);  // m = j
      drop_.backend.apply_features(x, residual_.defined() ? with_layout_of(residual_, y) : residual_, y, features,
                                   drop_.call);
    }

    Tensor input_;
    std::optional<int64_t> dims_;
    Drop<Backend> drop_;
    Tensor residual_;
  };

  // Torch's CUDA kernel, which is for dropout of elements without a transform, keeps the strides of any dense input,
  // and nearly so does its product with a mask of features.
  static Tensor new_output(const Tensor& input, std::optional<int64_t> dims, const MaybeDoubles& transform,
                           const MaybeTensor& residual = std::nullopt) {
    const bool keeps_strides =
        dims ? !residual && draws_of("feature_dropout", input, dims) != input.numel() : input.is_cuda() && !transform;
    if (keeps_strides && input.is_non_overlapping_and_dense())
      return empty_result(input.sizes(), input.strides(), input);
    return empty_result_like(input);
  }

  static Tensor dropout(const Tensor& input, double p, const Tensor& rng_state, MaybeInts strides, MaybeInts index_map,
                        MaybeDoubles transform) {
    Operation operation(input, std::nullopt, p, index_map, transform);
    operation.use(rng_state);
    return operation.into(strides ? numbered_output("dropout", input, strides)
                                  : new_output(input, std::nullopt, transform));
  }
  static void dropout_(Tensor& input, double p, const Tensor& rng_state, MaybeInts index_map, MaybeDoubles transform) {
    check_writable("dropout", input);
    Operation operation(input, std::nullopt, p, index_map, transform);
    operation.use(rng_state);
    operation.in_place();
  }
  static std::tuple<Tensor, Tensor> dropout_seeded(const Tensor& input, double p, MaybeInts index_map,
                                                   MaybeDoubles transform) {
    Operation operation(input, std::nullopt, p, index_map, transform);
    Tensor rng_state = operation.draw();
    return {operation.into(new_output(input, std::nullopt, transform)), rng_state};
  }
  static Tensor dropout_seeded_(Tensor& input, double p, MaybeInts index_map, MaybeDoubles transform) {
    check_writable("dropout", input);
    Operation operation(input, std::nullopt, p, index_map, transform);
    Tensor rng_state = operation.draw();
    operation.in_place();
    return rng_state;
  }

  static Tensor draw_rng_state(const Tensor& like, const std::optional<at::Generator>& generator) {
    TORCH_CHECK(!generator || generator->device() == like.device(), "draw_rng_state: generator must be on ",
                like.device(), ", got one on ", generator->device());
    const Tensor one = at::empty({1}, like.options());
    Drop<Backend> drop("draw_rng_state", one, 0.5, 1, std::nullopt, std::nullopt);
    Tensor rng_state = drop.draw(generator);
    drop.backend.apply(one, one, drop.call);
    return rng_state;
  }

  static Tensor feature_dropout(const Tensor& input, int64_t dims, double p, const Tensor& rng_state,
                                MaybeInts index_map, MaybeDoubles transform, const MaybeTensor& residual) {
    Operation operation(input, dims, p, index_map, transform, residual);
    operation.use(rng_state);
    return operation.into(new_output(input, dims, transform, residual));
  }
  static void feature_dropout_(Tensor& input, int64_t dims, double p, const Tensor& rng_state, MaybeInts index_map,
                               MaybeDoubles transform) {
    check_writable("feature_dropout", input);
    Operation operation(input, dims, p, index_map, transform);
    operation.use(rng_state);
    operation.in_place();
  }
  static std::tuple<Tensor, Tensor> feature_dropout_seeded(const Tensor& input, int64_t dims, double p,
                                                           MaybeInts index_map, MaybeDoubles transform,
                                                           const MaybeTensor& residual) {
    Operation operation(input, dims, p, index_map, transform, residual);
    Tensor rng_state = operation.draw();
    return {operation.into(new_output(input, dims, transform, residual)), rng_state};
  }
  static Tensor feature_dropout_seeded_(Tensor& input, int64_t dims, double p, MaybeInts index_map,
                                        MaybeDoubles transform) {
    check_writable("feature_dropout", input);
    Operation operation(input, dims, p, index_map, transform);
    Tensor rng_state = operation.draw();
    operation.in_place();
    return rng_state;
  }

 public:
  static void register_in(torch::Library& m) {
    m.impl("dropout", TORCH_FN(dropout));
    m.impl("dropout_", TORCH_FN(dropout_));
    m.impl("dropout_seeded", TORCH_FN(dropout_seeded));
    m.impl("dropout_seeded_", TORCH_FN(dropout_seeded_));
    m.impl("draw_rng_state", TORCH_FN(draw_rng_state));
    m.impl("feature_dropout", TORCH_FN(feature_dropout));
    m.impl("feature_dropout_", TORCH_FN(feature_dropout_));
    m.impl("feature_dropout_seeded", TORCH_FN(feature_dropout_seeded));
    m.impl("feature_dropout_seeded_", TORCH_FN(feature_dropout_seeded_));
  }
};

}  // namespace fastreg
