// Merging the statistics of several parts of a batch.
//
// Algorithm: Chan's rule, part after part. Thread mapping: a thread per channel, so that neighbours read neighbouring
// values; nothing is shared, and the order of the sums is that of the parts. Bytes moved per channel: 3 values of each
// part read, 3 written, running statistics read and written.
#include "kernels/batch_norm/merge.h"

#include "kernels/batch_norm/batch_norm.h"
#include "kernels/common/device.h"
#include "kernels/common/memory.h"

namespace fastreg {

template <class A>
__global__ void __launch_bounds__(256)
    batch_norm_merge_kernel(const A* moments, int64_t parts, int64_t channels, double eps, A* stats, double* count,
                            RunningUpdate running) {
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const MergedStatistics s =
      merged_statistics<A>(parts, channels, c, eps, [&](int64_t i) { return double(load(moments + i)); });
  store(stats + c, A(s.centre));
  store(stats + channels + c, A(s.delta));
  store(stats + 2 * channels + c, A(s.invstd));
  if (c == 0) store(count, s.count);

  const double factor = running.cumulative ? 1.0 / double(load(running.num_batches_tracked)) : running.factor;
  const auto update = [&](const ChannelValues& statistic, double of_batch) {
    A* const element = static_cast<A*>(statistic.data) + c;
    store(element, A(updated_running(double(load(element)), of_batch, factor)));
  };
  if (running.mean.data != nullptr && s.count >= 1) update(running.mean, s.mean);
  if (running.var.data != nullptr && s.count >= 2) update(running.var, s.variance);
}

template <class A>
cudaError_t launch_batch_norm_merge(const A* moments, int64_t parts, int64_t channels, double eps, A* stats,
                                    double* count, const RunningUpdate& running, const Device& device) {
  LaunchConfig config;
  config.block = dim3(unsigned(device.threads));
  config.grid = dim3(unsigned((channels + device.threads - 1) / device.threads));
  config.stream = device.stream;
  return launch(config, batch_norm_merge_kernel<A>, moments, parts, channels, eps, stats, count, running);
}

template cudaError_t launch_batch_norm_merge(const float*, int64_t, int64_t, double, float*, double*,
                                             const RunningUpdate&, const Device&);
template cudaError_t launch_batch_norm_merge(const double*, int64_t, int64_t, double, double*, double*,
                                             const RunningUpdate&, const Device&);

}  // namespace fastreg
