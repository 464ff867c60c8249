// The derivative of dropout, for every backend, as nodes in C++: in small calls the overhead is the cost.
//
// It is dropout of the gradient with the same rng_state. Elements are numbered in the memory order of the *forward*
// output, whatever the gradient's own order; features are counted, so that no order matters. What is kept for it: 16
// bytes, and the strides. The derivative is itself an operator with this derivative: so are all higher ones.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "autograd/node.h"

namespace fastreg {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = at::OptionalSymIntArrayRef;
using Doubles = std::optional<at::ArrayRef<double>>;

const auto& dropout_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, double, const Tensor&, Ints, Ints, Doubles)>("fastreg::dropout");
  return op;
}
const auto& dropout_in_place_operator() {
  static const auto op = find_operator<void(Tensor&, double, const Tensor&, Ints, Doubles)>("fastreg::dropout_");
  return op;
}
const auto& dropout_seeded_operator() {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded");
  return op;
}
const auto& dropout_seeded_in_place_operator() {
  static const auto op = find_operator<Tensor(Tensor&, double, Ints, Doubles)>("fastreg::dropout_seeded_");
  return op;
}
const auto& feature_operator() {
  static const auto op =
      find_operator<Tensor(const Tensor&, int64_t, double, const Tensor&, Ints, Doubles, const OptionalTensor&)>(
          "fastreg::feature_dropout");
  return op;
}
const auto& feature_in_place_operator() {
  static const auto op =
      find_operator<void(Tensor&, int64_t, double, const Tensor&, Ints, Doubles)>("fastreg::feature_dropout_");
  return op;
}
const auto& feature_seeded_operator() {
  static const auto op =
      find_operator<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, double, Ints, Doubles, const OptionalTensor&)>(
          "fastreg::feature_dropout_seeded");
  return op;
}
const auto& feature_seeded_in_place_operator() {
  static const auto op =
      find_operator<Tensor(Tensor&, int64_t, double, Ints, Doubles)>("fastreg::feature_dropout_seeded_");
  return op;
}

// What the kinds of dropout have in common: which draws decide, and what becomes of kept and dropped elements.
struct Kind {
  std::optional<int64_t> dims;  // of feature dropout
  double p;
  Ints index_map;
  Doubles transform;
};

// Dropout of a gradient or a tangent: shift and fill do not depend on the input. strides: of the output, in whose
// memory order elements are counted.
Tensor linear_part(const Kind& kind, const Tensor& x, const Tensor& rng_state, Ints strides,
                   const OptionalTensor& residual = std::nullopt) {
  std::array<double, 3> scale_alone = {0.0, -0.0, 0.0};
  Doubles transform;
  if (kind.transform) {
    scale_alone[0] = kind.transform->at(0);
    transform = scale_alone;
  }
  if (kind.dims)
    return call_in_backward(feature_operator(), x, *kind.dims, kind.p, rng_state, kind.index_map, transform, residual);
  return call_in_backward(dropout_operator(), x, kind.p, rng_state, strides, kind.index_map, transform);
}

// Of input and residual.
struct DropoutBackward : Derivative<2, 1> {
  static constexpr const char* kName = "fastreg::DropoutBackward";
  using SymInts = std::vector<c10::SymInt>;

  double p = 0.0;
  std::optional<int64_t> dims;
  SymInts strides;  // of the output, in whose memory order elements are counted; of no meaning with dims
  std::optional<SymInts> index_map;
  std::optional<double> scale;  // of the transform: neither shift nor fill depends on the input

  DropoutBackward() = default;
  DropoutBackward(const Kind& kind, c10::SymIntArrayRef strides) : p(kind.p), dims(kind.dims) {
    if (!dims) this->strides = strides.vec();
    if (kind.index_map) index_map = kind.index_map->vec();
    if (kind.transform) scale = kind.transform->at(0);
  }

  template <class Self, class F>
  static void for_each_field(Self& self, F&& f) {
    f(self.p), f(self.dims), f(self.strides), f(self.index_map), f(self.scale);
  }

  Gradients operator()(const Tensor& grad_output, const Saved& saved, const Wanted& wanted) const {
    Gradients all;
    if (wanted[0]) {
      Kind kind{dims, p, std::nullopt, std::nullopt};
      if (index_map) kind.index_map = *index_map;
      if (scale) kind.transform = *scale;
      all[0] = linear_part(kind, grad_output, saved[0], Ints(strides));
    }
    if (wanted[1]) all[1] = grad_output;
    return all;
  }
};

template <class Compute>
std::tuple<Tensor, Tensor> recorded(const Tensor& input, const OptionalTensor& residual, const Kind& kind,
                                    const Compute& compute) {
  if (has_tangent(input) || has_tangent(residual)) {
    auto [output, used] = recorded(primal(input), primal(residual), kind, compute);
    const Tensor of_input = tangent(input), of_residual = tangent(residual);
    const auto addend = of_residual.defined() ? OptionalTensor(of_residual) : std::nullopt;
    output._set_fw_grad(
        of_input.defined() ? linear_part(kind, of_input, used, output.sym_strides(), addend) : of_residual, 0, false);
    return {std::move(output), std::move(used)};
  }
  auto [output, used] = compute(input, residual);
  if (is_recorded(input, residual))
    record(output, DropoutBackward(kind, output.sym_strides()), {used}, input, residual);
  return {std::move(output), std::move(used)};
}

// compute() -> the rng_state that was used.
template <class Compute>
Tensor recorded_in_place(const Tensor& input, const Kind& kind, const Compute& compute) {
  const bool records = is_recorded(input);
  torch::autograd::check_inplace(input, records);
  if (!records) return compute();
  torch::autograd::edge_list before = torch::autograd::collect_next_edges(input, Tensor());
  Tensor used = compute();
  torch::autograd::increment_version(input);
  const Tensor in_order = kind.dims || input.is_non_overlapping_and_dense() ? input : at::empty_like(input);
  rebase_history(input, make_node(std::move(before), DropoutBackward(kind, in_order.sym_strides()), {used}));
  return used;
}

Tensor dropout(const Tensor& input, double p, const Tensor& given_state, Ints strides, Ints index_map,
               Doubles transform) {
  const Tensor rng_state = savable(given_state);
  return std::get<0>(recorded(
      input, std::nullopt, {std::nullopt, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor&) {
        return std::tuple(call_below(dropout_operator(), x, p, rng_state, strides, index_map, transform), rng_state);
      }));
}
std::tuple<Tensor, Tensor> dropout_seeded(const Tensor& input, double p, Ints index_map, Doubles transform) {
  return recorded(input, std::nullopt, {std::nullopt, p, index_map, transform},
                  [&](const Tensor& x, const OptionalTensor&) {
                    return call_below(dropout_seeded_operator(), x, p, index_map, transform);
                  });
}
Tensor feature_dropout(const Tensor& input, int64_t dims, double p, const Tensor& given_state, Ints index_map,
                       Doubles transform, const OptionalTensor& residual) {
  const Tensor rng_state = savable(given_state);
  return std::get<0>(
      recorded(input, residual, {dims, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor& addend) {
        return std::tuple(call_below(feature_operator(), x, dims, p, rng_state, index_map, transform, addend),
                          rng_state);
      }));
}
std::tuple<Tensor, Tensor> feature_dropout_seeded(const Tensor& input, int64_t dims, double p, Ints index_map,
                                                  Doubles transform, const OptionalTensor& residual) {
  return recorded(input, residual, {dims, p, index_map, transform}, [&](const Tensor& x, const OptionalTensor& addend) {
    return call_below(feature_seeded_operator(), x, dims, p, index_map, transform, addend);
  });
}

// In place, a tangent goes the way of the operators out of place.
Tensor copied(Tensor& input, std::tuple<Tensor, Tensor> output_and_state) {
  input.copy_(std::get<0>(output_and_state));
  return std::get<1>(output_and_state);
}

void dropout_(Tensor& input, double p, const Tensor& given_state, Ints index_map, Doubles transform) {
  const Tensor rng_state = savable(given_state);
  if (has_tangent(input)) {
    copied(input, {dropout(input, p, rng_state, std::nullopt, index_map, transform), rng_state});
    return;
  }
  recorded_in_place(input, {std::nullopt, p, index_map, transform}, [&] {
    call_below(dropout_in_place_operator(), input, p, rng_state, index_map, transform);
    return rng_state;
  });
}
Tensor dropout_seeded_(Tensor& input, double p, Ints index_map, Doubles transform) {
  if (has_tangent(input)) return copied(input, dropout_seeded(input, p, index_map, transform));
  return recorded_in_place(input, {std::nullopt, p, index_map, transform}, [&] {
    return call_below(dropout_seeded_in_place_operator(), input, p, index_map, transform);
  });
}
void feature_dropout_(Tensor& input, int64_t dims, double p, const Tensor& given_state, Ints index_map,
                      Doubles transform) {
  const Tensor rng_state = savable(given_state);
  if (has_tangent(input)) {
    copied(input, {feature_dropout(input, dims, p, rng_state, index_map, transform, std::nullopt), rng_state});
    return;
  }
  recorded_in_place(input, {dims, p, index_map, transform}, [&] {
    call_below(feature_in_place_operator(), input, dims, p, rng_state, index_map, transform);
    return rng_state;
  });
}
Tensor feature_dropout_seeded_(Tensor& input, int64_t dims, double p, Ints index_map, Doubles transform) {
  if (has_tangent(input))
    return copied(input, feature_dropout_seeded(input, dims, p, index_map, transform, std::nullopt));
  return recorded_in_place(input, {dims, p, index_map, transform}, [&] {
    return call_below(feature_seeded_in_place_operator(), input, dims, p, index_map, transform);
  });
}

}  // namespace
}  // namespace fastreg

TORCH_LIBRARY_IMPL(fastreg, Autograd, m) {
  m.impl("dropout", TORCH_FN(fastreg::dropout));
  m.impl("dropout_", TORCH_FN(fastreg::dropout_));
  m.impl("dropout_seeded", TORCH_FN(fastreg::dropout_seeded));
  m.impl("dropout_seeded_", TORCH_FN(fastreg::dropout_seeded_));
  m.impl("feature_dropout", TORCH_FN(fastreg::feature_dropout));
  m.impl("feature_dropout_", TORCH_FN(fastreg::feature_dropout_));
  m.impl("feature_dropout_seeded", TORCH_FN(fastreg::feature_dropout_seeded));
  m.impl("feature_dropout_seeded_", TORCH_FN(fastreg::feature_dropout_seeded_));
}
