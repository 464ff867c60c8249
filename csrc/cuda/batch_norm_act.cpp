// Batch norm with what stands next to it, on CUDA devices.
#include "../batch_norm_act_operators.h"
#include "../kernels/epilogue.h"
#include "batch_norm_call.h"
#include "dropout.h"

namespace fastreg::cuda {
namespace {

constexpr const char* kOp = "batch_norm_act";
using CudaFusion = Fusion<StateSource>;

template <class T>
Epilogue<T> epilogue_of(const CudaFusion& fusion) {
  Epilogue<T> epilogue;
  epilogue.set_activations(fusion.pre_act, fusion.act);
  if (fusion.residual.defined()) epilogue.residual = const_data<T>(fusion.residual);
  if (fusion.gate.defined()) epilogue.gate = fusion.gate.data_ptr<uint8_t>();
  if (fusion.drops) epilogue.set_dropout(fusion.drop);
  return epilogue;
}

EpilogueTraffic traffic_of(const CudaFusion& fusion, bool grad_residual = false) {
  return {fusion.residual.defined(), fusion.gate.defined(), grad_residual};
}

template <class T>
Epilogue<T> forward_epilogue(const BatchNormPlan& plan, const CudaFusion& fusion, T) {
  Epilogue<T> epilogue = epilogue_of<T>(fusion);
  epilogue.shares_gates = plan.shares_gates;
  if (plan.shares_gates) fusion.gate.zero_();
  return epilogue;
}

struct BatchNormActBackend {
  using Dropout = DropoutBackend;

  static void train(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                    const Statistics& statistics, const Running& running, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::train, {x, y, fusion.residual}, true, traffic_of(fusion));
    cuda::train(kOp, planned, x, y, affine, statistics, running,
                [&](const BatchNormPlan& plan, auto tag) { return forward_epilogue(plan, fusion, tag); });
  }

  static void eval(const ChannelLayout& layout, const Tensor& x, const Tensor& y, const Affine& affine,
                   const Statistics& statistics, const CudaFusion& fusion) {
    const Planned planned(kOp, layout, BatchNormPass::eval, {x, y, fusion.residual}, true, traffic_of(fusion));
    cuda::eval(kOp, layout, x, y, affine, statistics,
               [&](auto tag) { return forward_epilogue(planned.plan, fusion, tag); });
  }

  static void backward(const ChannelLayout& layout, const Tensor& dy, const Tensor& x, const Affine& affine,
                       const Statistics& statistics, const CudaFusion& fusion, const FusedGradients& gradients) {
    const Planned planned(kOp, layout, backward_pass(statistics),
                          {x, dy, fusion.residual, gradients.input, gradients.residual}, true,
                          traffic_of(fusion, gradients.residual.defined()));
    const Tensor bias = contiguous(affine.bias);
    cuda::backward(kOp, planned, dy, x, affine.weight, statistics, gradients, [&](const BatchNormPlan&, auto tag) {
      using T = decltype(tag);
      Epilogue<T> epilogue = epilogue_of<T>(fusion);
      epilogue.bias = values_of(bias);
      if (gradients.residual.defined()) epilogue.grad_residual = data<T>(gradients.residual);
      return epilogue;
    });
  }
};

}  // namespace
}  // namespace fastreg::cuda

TORCH_LIBRARY_IMPL(fastreg, FASTREG_DISPATCH_KEY, m) {
  fastreg::BatchNormActOperators<fastreg::cuda::BatchNormActBackend>::register_in(m);
}
