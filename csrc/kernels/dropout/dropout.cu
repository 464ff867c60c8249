// Choice of the dropout kernel, and its launch.
#include "kernels/dropout/dropout.cuh"

namespace fastreg {

namespace {

constexpr int64_t kWholeGroups = 2;  // blocks for each multiprocessor: with fewer, groups are divided into tiles

template <class T, int V, Mapping kMapping>
cudaError_t run(const T* x, T* y, int64_t n, int64_t head, const DropoutParameters& p, const Device& device) {
  constexpr int64_t kGroup = kTilesInFlight<V>;
  const Span span = {head, head + n};
  const int64_t tiles = (span.end + kTile - 1) / kTile;
  const int64_t enough = device.multiprocessors * kWholeGroups * (device.threads / kWarp);
  int64_t group_begin = 0, group_end = 0;
  if (V > 1 && tiles >= enough * kGroup) {
    group_begin = head > 0 ? 1 : 0;
    group_end = span.end / (kTile * kGroup);
  }
  const int64_t pieces = group_end > group_begin ? group_end - group_begin : tiles;
  return launch(config_for_warps(pieces, device), dropout_kernel<T, V, kMapping>, x - head, y - head, span, group_begin,
                group_end, p.state, p.threshold, Transform<compute_t<T>>(p.transform), StreamMap(p.map));
}

}  // namespace

template <class T>
cudaError_t launch_dropout(const T* x, T* y, int64_t n, const DropoutParameters& p, const Device& device) {
  if (n == 0) return cudaSuccess;
  const int64_t head = elements_past_boundary(x);
  if (head != elements_past_boundary(y)) return run<T, 1, Mapping::any>(x, y, n, 0, p, device);
  if (head == 0 && p.map.first % kBlockElements == 0 && n <= p.map.row)
    return run<T, kVector<T>, Mapping::shift>(x, y, n, head, p, device);
  return run<T, kVector<T>, Mapping::any>(x, y, n, head, p, device);
}

template cudaError_t launch_dropout(const float*, float*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const double*, double*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const half*, half*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const bfloat16*, bfloat16*, int64_t, const DropoutParameters&, const Device&);

}  // namespace fastreg
