// Batch norm with what stands next to it, on CUDA devices.
#include <ATen/ops/sum.h>

#include "cuda/batch_norm_call.h"
#include "cuda/dropout.h"
#include "kernels/batch_norm/epilogue.h"
#include "operators/batch_norm_act.h"

namespace fastreg::cuda {
namespace {

constexpr const char* kOp = "batch_norm_act";
using CudaFusion = Fusion<StateSource>;

// slopes: prelu's, contiguous.
template <class T>
SlopedEpilogue<T> epilogue_of(const CudaFusion& fusion, const Tensor& slopes) {
  SlopedEpilogue<T> epilogue;
  epilogue.set_activations(fusion.pre_act, fusion.act);
  epilogue.slopes = values_of(slopes);
  epilogue.one_slope = slopes.defined() && slopes.numel() == 1;
  if (fusion.residual.defined()) epilogue.residual = const_data<T>(fusion.residual);
  if (fusion.gate.defined()) epilogue.gate = fusion.gate.data_ptr<uint8_t>();
  if (fusion.drops) epilogue.set_dropout(fusion.drop);
  return epilogue;
}

EpilogueTraffic traffic_of(const CudaFusion& fusion, bool grad_residual = false) {
  return {fusion.residual.defined(), fusion.gate.defined(), grad_residual, fusion.act_weight.defined()};
}

template <class T>
SlopedEpilogue<T> forward_epilogue(const BatchNormPlan& plan, const CudaFusion& fusion, const Tensor& slopes, T) {
  SlopedEpilogue<T> epilogue = epilogue_of<T>(fusion, slopes);
  epilogue.shares_gates = plan.shares_gates;
  if (plan.shares_gates) fusion.gate.zero_();
  return epilogue;
}

struct BatchNormActBackend {
  using Dropout = DropoutBackend;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::train, {x, y, fusion.residual}, true, traffic_of(fusion));
    const Tensor slopes = contiguous(fusion.act_weight);
    cuda::train(kOp, planned, x, y, affine, statistics, running,
                [&](const BatchNormPlan& plan, auto tag) { return forward_epilogue(plan, fusion, slopes, tag); });
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::eval, {x, y, fusion.residual}, true, traffic_of(fusion));
    const Tensor slopes = contiguous(fusion.act_weight);
    cuda::eval(kOp, layout, x, y, affine, statistics,
               [&](auto tag) { return forward_epilogue(planned.plan, fusion, slopes, tag); });
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Affine& affine,
                       const Statistics& statistics, const CudaFusion& fusion, const FusedGradients& gradients) {
    const Planned planned(kOp, layout, backward_pass(statistics),
                          {x, dy, fusion.residual, gradients.input, gradients.residual}, true,
                          traffic_of(fusion, gradients.residual.defined()));
    const Tensor bias = contiguous(affine.bias), slopes = contiguous(fusion.act_weight);
    // Kernels sum over a channel: what is one slope's is then summed over the channels.
    Tensor grad_slopes = gradients.act_weight;
    const bool sums_channels = grad_slopes.defined() && grad_slopes.numel() < layout.channels;
    if (sums_channels)
      grad_slopes = at::empty({layout.channels}, grad_slopes.options().dtype(compute_dtype(x.scalar_type())));
    cuda::backward(kOp, planned, dy, x, affine.weight, statistics, gradients, [&](const BatchNormPlan&, auto tag) {
      using T = decltype(tag);
      SlopedEpilogue<T> epilogue = epilogue_of<T>(fusion, slopes);
      epilogue.bias = values_of(bias);
      epilogue.grad_slopes = values_of(grad_slopes);
      if (gradients.residual.defined()) epilogue.grad_residual = data<T>(gradients.residual);
      return epilogue;
    });
    if (sums_channels) gradients.act_weight.copy_(at::sum(grad_slopes));
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::BatchNormActOperators<fastreg::cuda::BatchNormActBackend>::register_in(m);
}
