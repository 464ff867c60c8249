// Choice of the dropout kernel, and its launch.
#include "dropout.cuh"

namespace fastreg {

namespace {

Mapping mapping_of(const IndexMap& map, int64_t n) {
  if (map.first % kBlockElements != 0) return Mapping::scatter;
  if (n <= map.row) return Mapping::shift;
  return map.row % kBlockElements == 0 && map.row_stride % kBlockElements == 0 ? Mapping::blocks : Mapping::scatter;
}

template <class T, int V, Mapping kMapping>
cudaError_t run(const T* x, T* y, int64_t n, const DropoutParameters& p, const Device& device) {
  const int64_t per_block = int64_t(device.threads / kWarp) * kTile * kTilesInFlight<V>;
  const int64_t wanted = (n + per_block - 1) / per_block;
  const int64_t most = int64_t(device.multiprocessors) * (2048 / device.threads) * 4;
  LaunchConfig config;
  config.grid = dim3(unsigned(wanted < most ? wanted : most));
  config.block = dim3(unsigned(device.threads));
  config.stream = device.stream;
  return launch(config, dropout_kernel<T, V, kMapping>, x, y, n, p.state, p.threshold,
                rounded<compute_t<T>>(p.transform), p.map);
}

}  // namespace

template <class T>
cudaError_t launch_dropout(const T* x, T* y, int64_t n, const DropoutParameters& p, const Device& device) {
  if (n == 0) return cudaSuccess;
  const Mapping mapping = mapping_of(p.map, n);
  const bool wide = is_aligned(x) && is_aligned(y);
  if (mapping == Mapping::shift)
    return wide ? run<T, kVector<T>, Mapping::shift>(x, y, n, p, device)
                : run<T, 1, Mapping::shift>(x, y, n, p, device);
  if (mapping == Mapping::blocks && wide) return run<T, kVector<T>, Mapping::blocks>(x, y, n, p, device);
  return run<T, 1, Mapping::scatter>(x, y, n, p, device);
}

template cudaError_t launch_dropout(const float*, float*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const double*, double*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const half*, half*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const bfloat16*, bfloat16*, int64_t, const DropoutParameters&, const Device&);

}  // namespace fastreg
