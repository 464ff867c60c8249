// Choice of the dropout kernel, and its launch.
#include "dropout.cuh"

namespace fastreg {

namespace {

bool maps_blocks_to_blocks(const IndexMap& map, int64_t n) {
  if (map.first % kBlockElements != 0) return false;
  return n <= map.row || (map.row % kBlockElements == 0 && map.row_stride % kBlockElements == 0);
}

template <class T, int V, bool kBlockMap>
cudaError_t run(const T* x, T* y, int64_t n, const DropoutParameters& p, const Device& device) {
  const int64_t per_block = int64_t(device.threads / kWarp) * kTile * kTilesInFlight<V>;
  const int64_t wanted = (n + per_block - 1) / per_block;
  const int64_t most = int64_t(device.multiprocessors) * (2048 / device.threads) * 4;
  LaunchConfig config;
  config.grid = dim3(unsigned(wanted < most ? wanted : most));
  config.block = dim3(unsigned(device.threads));
  config.stream = device.stream;
  return launch(config, dropout_kernel<T, V, kBlockMap>, x, y, n, p.state, p.threshold, compute_t<T>(p.scale), p.map);
}

}  // namespace

template <class T>
cudaError_t launch_dropout(const T* x, T* y, int64_t n, const DropoutParameters& p, const Device& device) {
  if (n == 0) return cudaSuccess;
  if (!maps_blocks_to_blocks(p.map, n)) return run<T, 1, false>(x, y, n, p, device);
  if (!is_aligned(x) || !is_aligned(y)) return run<T, 1, true>(x, y, n, p, device);
  return run<T, kVector<T>, true>(x, y, n, p, device);
}

template cudaError_t launch_dropout(const float*, float*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const double*, double*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const half*, half*, int64_t, const DropoutParameters&, const Device&);
template cudaError_t launch_dropout(const bfloat16*, bfloat16*, int64_t, const DropoutParameters&, const Device&);

}  // namespace fastreg
