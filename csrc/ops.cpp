// The operators of fastreg: their schemas, and nothing else. Implementations are registered by csrc/cpu and
// csrc/cuda, derivatives by csrc/autograd, fake kernels by fastreg/ops.
//
// Each folder includes from itself and from those before it alone, the last three not from each other:
//   kernels/common      CUDA C++ without torch, and what the CPU backend shares with it: memory, types, activations
//   kernels/dropout     the stream of random draws, and the kernels
//   kernels/batch_norm  plans and kernels, with activation and dropout fused in
//   cpu/isa             the CPU kernels, without torch, once per instruction set (from kernels)
//   operators           what holds for any backend: argument checks, layouts, dispatch over dtypes, results
//   autograd, cpu, cuda derivatives; the operators on the two kinds of devices
#include <torch/library.h>

// Tensors. rng_state: int64[2], (seed, offset) read as unsigned. strides: the dense strides in whose memory order the
// elements are numbered, default those of empty_like(input). index_map: (first, row, row_stride), element j of the
// tensor is element first + (j div row) * row_stride + j mod row of the stream, default (0, numel, 0).
// transform: (scale, shift, fill), kept elements become fma(x, scale, shift), dropped ones fill, default
// (1 / (1 - p), -0.0, 0).
// Results of batch norm, and gradients of its input and residual, have the strides that torch's have on the input's
// device: contiguous or channels-last (csrc/layout.h).
// stats: [3, C] in fp32 (fp64 for fp64 input): centre, mean - centre, 1 / sqrt(var + eps).
TORCH_LIBRARY(fastreg, m) {
  // Pure: the mask is a function of rng_state. Its own backward: grad_input = dropout(grad_output) with the strides
  // of the forward output and the transform (scale, -0.0, 0).
  m.def(
      "dropout(Tensor input, float p, Tensor rng_state, SymInt[]? strides=None, SymInt[]? index_map=None, "
      "float[]? transform=None) -> Tensor",
      {at::Tag::needs_exact_strides});
  m.def(
      "dropout_(Tensor(a!) input, float p, Tensor rng_state, SymInt[]? index_map=None, float[]? transform=None) -> ()",
      {at::Tag::needs_exact_strides});
  // Draw rng_state from the device's generator and apply it, in one launch. Return the state that was used.
  m.def(
      "dropout_seeded(Tensor input, float p, SymInt[]? index_map=None, float[]? transform=None) "
      "-> (Tensor output, Tensor rng_state)",
      {at::Tag::needs_exact_strides, at::Tag::nondeterministic_seeded});
  m.def("dropout_seeded_(Tensor(a!) input, float p, SymInt[]? index_map=None, float[]? transform=None) -> Tensor",
        {at::Tag::needs_exact_strides, at::Tag::nondeterministic_seeded});

  // The state that a call with an input on like's device would draw now, from its default generator or another one.
  m.def("draw_rng_state(Tensor like, Generator? generator=None) -> Tensor", {at::Tag::nondeterministic_seeded});

  // One draw per index of the leading `dims` dimensions, counted logically, whatever the memory order: 1 for drop path,
  // 2 for dropout1d, 2d and 3d. index_map maps draws. With a residual, y = keep ? fma(x, scale, residual) : residual.
  m.def(
      "feature_dropout(Tensor input, int dims, float p, Tensor rng_state, SymInt[]? index_map=None, "
      "float[]? transform=None, Tensor? residual=None) -> Tensor");
  m.def(
      "feature_dropout_(Tensor(a!) input, int dims, float p, Tensor rng_state, SymInt[]? index_map=None, "
      "float[]? transform=None) -> ()");
  m.def(
      "feature_dropout_seeded(Tensor input, int dims, float p, SymInt[]? index_map=None, float[]? transform=None, "
      "Tensor? residual=None) -> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  m.def(
      "feature_dropout_seeded_(Tensor(a!) input, int dims, float p, SymInt[]? index_map=None, "
      "float[]? transform=None) -> Tensor",
      {at::Tag::nondeterministic_seeded});

  // momentum=None: cumulative average, 1 / (num_batches_tracked + 1). num_batches_tracked is incremented.
  m.def(
      "batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, float eps) "
      "-> (Tensor output, Tensor stats)");
  m.def(
      "batch_norm_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
      "float eps) -> Tensor");
  // output_mask: which of (grad_input, grad_weight, grad_bias) to compute; the others come back as empty tensors.
  m.def(
      "batch_norm_train_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor stats, "
      "bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm_eval_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor running_mean, "
      "Tensor running_var, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // Training over several parts of a batch: moments of each, all merged, then each part normalised; backward,
  // batch_norm_train_backward without weight and grad_input gives each part's sums, then comes batch_norm_grad_input.
  // moments: [3 C + 1], the stats of a part with eps = 0, then its number of values per channel, 0 in an empty part.
  m.def("batch_norm_moments(Tensor input) -> Tensor");
  // moments: [parts, 3 C + 1], merged in their order. Running statistics as in batch_norm_train; where all parts
  // together have too few values for a statistic it stays as it is. count: float64[], values per channel of all parts.
  m.def(
      "batch_norm_merge(Tensor moments, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, float? momentum, float eps) -> (Tensor stats, Tensor count)");
  m.def("batch_norm_normalize(Tensor input, Tensor? weight, Tensor? bias, Tensor stats) -> Tensor");
  // grad_means: [2, C] in the dtype of stats, means of dy and of dy * (x - mean) * invstd over all parts.
  m.def(
      "batch_norm_grad_input(Tensor grad_output, Tensor input, Tensor? weight, Tensor stats, Tensor grad_means) "
      "-> Tensor");

  // dropout(act(batch_norm(pre_act(input)) + residual)). Activations: the names and parameters of
  // kernels/common/activation.h. Elements are numbered in the memory order of the result; rng_state where p > 0.
  // act_weight: [1] or [C], the slope where act is prelu, else None. gate: where save_gate asks for it, and there is a
  // residual and an act with two slopes, which of them the elements have, as the device's kernels lay it out; else
  // empty.
  m.def(
      "batch_norm_act_train(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, float eps, str pre_act, "
      "float pre_act_parameter, Tensor? residual, str act, float act_parameter, Tensor? act_weight, "
      "bool save_gate, float p, Tensor? rng_state) -> (Tensor output, Tensor stats, Tensor gate)",
      {at::Tag::needs_exact_strides});
  m.def(
      "batch_norm_act_train_seeded(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, float eps, str pre_act, "
      "float pre_act_parameter, Tensor? residual, str act, float act_parameter, Tensor? act_weight, "
      "bool save_gate, float p) -> (Tensor output, Tensor stats, Tensor gate, Tensor rng_state)",
      {at::Tag::needs_exact_strides, at::Tag::nondeterministic_seeded});
  m.def(
      "batch_norm_act_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
      "float eps, str pre_act, float pre_act_parameter, Tensor? residual, str act, float act_parameter, "
      "Tensor? act_weight, bool save_gate, float p, Tensor? rng_state) -> (Tensor output, Tensor gate)",
      {at::Tag::needs_exact_strides});
  // bias where there is neither gate nor identity; residual where there was one, but neither gate nor identity.
  m.def(
      "batch_norm_act_train_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor stats, "
      "str pre_act, float pre_act_parameter, Tensor? residual, Tensor? gate, str act, float act_parameter, "
      "Tensor? act_weight, float p, Tensor? rng_state, bool[5] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual, Tensor grad_act_weight)",
      {at::Tag::needs_exact_strides});
  m.def(
      "batch_norm_act_eval_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor running_mean, Tensor running_var, float eps, str pre_act, float pre_act_parameter, Tensor? residual, "
      "Tensor? gate, str act, float act_parameter, Tensor? act_weight, float p, Tensor? rng_state, "
      "bool[5] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual, Tensor grad_act_weight)",
      {at::Tag::needs_exact_strides});

  // dropout(act(input + bias)) + residual; bias: [C], added to input[..., c]. dims: feature dropout of so many leading
  // dimensions (1 for drop path), default dropout of elements. strides as for dropout.
  m.def(
      "act_dropout(Tensor input, Tensor? bias, str act, float act_parameter, float p, Tensor? rng_state, "
      "Tensor? residual, int? dims, SymInt[]? strides=None) -> Tensor",
      {at::Tag::needs_exact_strides});
  m.def(
      "act_dropout_seeded(Tensor input, Tensor? bias, str act, float act_parameter, float p, Tensor? residual, "
      "int? dims) -> (Tensor output, Tensor rng_state)",
      {at::Tag::needs_exact_strides, at::Tag::nondeterministic_seeded});
  m.def(
      "act_dropout_backward(Tensor grad_output, Tensor input, Tensor? bias, str act, float act_parameter, float p, "
      "Tensor? rng_state, int? dims, SymInt[] strides) -> Tensor grad_input",
      {at::Tag::needs_exact_strides});

  // What torch's operators of the same names call, while they are patched (operators/torch_patch.cpp), where Python has
  // a say: it gives calls their random states, and traced ones pure operators. Composed of the operators above.
  m.def("patched_dropout(str name, Tensor input, float p, bool inplace, int? dims, bool alpha, bool traced) -> Tensor");
}
