// Choice of the feature dropout kernel, and its launch.
#include "kernels/dropout/feature_dropout.cuh"

namespace fastreg {

namespace {

template <class T, int V>
cudaError_t run(const T* x, const T* residual, T* y, int64_t n, int64_t head, const FeatureMap& features,
                const DropoutParameters& p, const Device& device) {
  constexpr int64_t kTileElements = kWarp * V * kFeatureAccesses<V>;
  const Span span = {head, head + n};
  return launch(config_for_warps((span.end + kTileElements - 1) / kTileElements, device), feature_dropout_kernel<T, V>,
                x - head, residual != nullptr ? residual - head : nullptr, y - head, span,
                FeatureWalk(features, kWarp * V), p.state, p.threshold, Transform<compute_t<T>>(p.transform),
                StreamMap(p.map));
}

}  // namespace

template <class T>
cudaError_t launch_feature_dropout(const T* x, const T* residual, T* y, int64_t n, const FeatureMap& features,
                                   const DropoutParameters& p, const Device& device) {
  if (n == 0) return cudaSuccess;
  const int64_t head = elements_past_boundary(x);
  const bool together =
      head == elements_past_boundary(y) && (residual == nullptr || head == elements_past_boundary(residual));
  return together ? run<T, kVector<T>>(x, residual, y, n, head, features, p, device)
                  : run<T, 1>(x, residual, y, n, 0, features, p, device);
}

template cudaError_t launch_feature_dropout(const float*, const float*, float*, int64_t, const FeatureMap&,
                                            const DropoutParameters&, const Device&);
template cudaError_t launch_feature_dropout(const double*, const double*, double*, int64_t, const FeatureMap&,
                                            const DropoutParameters&, const Device&);
template cudaError_t launch_feature_dropout(const half*, const half*, half*, int64_t, const FeatureMap&,
                                            const DropoutParameters&, const Device&);
template cudaError_t launch_feature_dropout(const bfloat16*, const bfloat16*, bfloat16*, int64_t, const FeatureMap&,
                                            const DropoutParameters&, const Device&);

}  // namespace fastreg
