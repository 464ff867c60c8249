// Choice of the kernel of activation and dropout, and its launch.
#include "kernels/dropout/act_dropout.cuh"

namespace fastreg {

namespace {

template <class T, int V>
cudaError_t run(ActDropoutWork<T> work, const Device& device) {
  work.whole_bias = V > 1 && work.channels.divisor % V == 0 && is_aligned(work.bias);
  return launch(config_for_warps((work.n + kWarp * V - 1) / (kWarp * V), device), act_dropout_kernel<T, V>, work);
}

template <class T>
cudaError_t run(const T* x, const T* other, T* out, int64_t n, bool backward, const ActDropoutParameters<T>& p,
                const Device& device) {
  if (n == 0) return cudaSuccess;
  using A = compute_t<T>;
  const FeatureMap features = p.features.value_or(FeatureMap{1, 1});
  const ActDropoutWork<T> work = {x,
                                  other,
                                  p.bias,
                                  out,
                                  n,
                                  Divider(p.channels),
                                  false,
                                  backward,
                                  p.act.kind,
                                  A(p.act.parameter),
                                  p.drops,
                                  p.features.has_value(),
                                  p.drops ? A(p.dropout.transform.scale) : A(1),
                                  p.dropout.threshold,
                                  p.dropout.state,
                                  FeatureWalk(features, 1),
                                  StreamMap(IndexMap{0, int64_t(1) << 62, 0})};
  // fp64 is moved element by element: fewer kernels.
  constexpr int kWide = sizeof(T) < 8 ? kVector<T> : 1;
  return is_aligned(x) && is_aligned(other) && is_aligned(out) ? run<T, kWide>(work, device) : run<T, 1>(work, device);
}

}  // namespace

template <class T>
cudaError_t launch_act_dropout(const T* x, T* y, int64_t n, const ActDropoutParameters<T>& parameters,
                               const Device& device) {
  return run(x, parameters.residual, y, n, false, parameters, device);
}

template <class T>
cudaError_t launch_act_dropout_backward(const T* dy, const T* x, T* dx, int64_t n,
                                        const ActDropoutParameters<T>& parameters, const Device& device) {
  return run(x, dy, dx, n, true, parameters, device);
}

#define FASTREG_INSTANTIATE(T)                                                                                      \
  template cudaError_t launch_act_dropout(const T*, T*, int64_t, const ActDropoutParameters<T>&, const Device&);    \
  template cudaError_t launch_act_dropout_backward(const T*, const T*, T*, int64_t, const ActDropoutParameters<T>&, \
                                                   const Device&)
FASTREG_INSTANTIATE(float);
FASTREG_INSTANTIATE(double);
FASTREG_INSTANTIATE(half);
FASTREG_INSTANTIATE(bfloat16);
#undef FASTREG_INSTANTIATE

}  // namespace fastreg
