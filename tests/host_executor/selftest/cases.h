// Runs of the self-test's kernels: each checks every value against a plain computation.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "host_executor/buffer.h"
#include "host_executor/executor.h"
#include "kernels.cuh"

namespace selftest {

struct Outcome {
  bool values_right = false;
  host_executor::Result result;
};

// A run of one kernel on its usual problem: for Bug::none, and for the mistakes of that kernel.
using Case = std::function<Outcome(const host_executor::Options&)>;

// The values of the test problems: small integers, whose sums are exact in any order.
inline float value(int64_t i) { return float(i * 7919 % 17 - 8); }

inline std::vector<float> values(size_t n) {
  std::vector<float> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = value(int64_t(i));
  return all;
}

inline float sum_of(const std::vector<float>& x, size_t first, size_t count) {
  float sum = 0.0f;
  for (size_t i = 0; i < count; ++i) sum += x[first + i];
  return sum;
}

inline fastreg::LaunchConfig config(unsigned grid, unsigned block, size_t shared_bytes) {
  fastreg::LaunchConfig config;
  config.grid = dim3(grid);
  config.block = dim3(block);
  config.shared_bytes = shared_bytes;
  return config;
}

constexpr unsigned kThreads = 64;
constexpr size_t kScratch = kThreads / 32 * sizeof(float);

template <Bug bug>
Outcome normalise_rows_case(const host_executor::Options& options) {
  // Three elements a thread; where threads exit early, fewer elements than threads.
  const int rows = 3, n = bug == Bug::early_exit ? 40 : 150;
  const std::vector<float> x = values(size_t(rows) * n);
  host_executor::Buffer<float> in(x, "x"), out(x.size(), "y");
  Outcome outcome;
  outcome.result = host_executor::run(options, [&] {
    fastreg::launch(config(rows, kThreads, kScratch), normalise_rows<bug>, in.data(), out.data(), n);
  });
  outcome.values_right = out.unwritten() == 0;
  for (int r = 0; r < rows; ++r) {
    const float mean = sum_of(x, size_t(r) * n, size_t(n)) / float(n);
    double scale = 0.0;
    for (int i = 0; i < n; ++i) scale += std::fabs(x[size_t(r) * n + i] - mean);
    for (int i = 0; i < n; ++i) {
      const double expected = (x[size_t(r) * n + i] - mean) / scale;
      // Not exact: the sum of deviations depends on its order. Negated, so that NaN fails.
      if (!(std::fabs(out[size_t(r) * n + i] - expected) <= 1e-6)) outcome.values_right = false;
    }
  }
  return outcome;
}

template <Bug bug>
Outcome count_positive_case(const host_executor::Options& options) {
  const int n = 100;
  const std::vector<float> x = values(n);
  host_executor::Buffer<float> in(x, "x");
  host_executor::Buffer<unsigned> count(std::vector<unsigned>{0}, "count");
  Outcome outcome;
  outcome.result = host_executor::run(
      options, [&] { fastreg::launch(config(2, kThreads, 0), count_positive<bug>, in.data(), count.data(), n); });
  unsigned expected = 0;
  for (const float v : x) expected += v > 0.0f;
  outcome.values_right = count[0] == expected;
  return outcome;
}

template <Bug bug>
Outcome copy_case(const host_executor::Options& options) {
  const int64_t n = 8 * 200 + 3;
  host_executor::Buffer<uint16_t> in(size_t(n), "x"), out(size_t(n), "y");
  for (int64_t i = 0; i < n; ++i) in[size_t(i)] = uint16_t(i);
  Outcome outcome;
  outcome.result = host_executor::run(
      options, [&] { fastreg::launch(config(2, kThreads, 0), copy<bug, uint16_t>, in.data(), out.data(), n); });
  outcome.values_right = std::equal(in.begin(), in.end(), out.begin());
  return outcome;
}

template <Bug bug>
Outcome cluster_sum_case(const host_executor::Options& options) {
  const int clusters = 3, blocks = 4, n = 500;
  const std::vector<float> x = values(size_t(clusters) * n);
  host_executor::Buffer<float> in(x, "x"), out(size_t(clusters * blocks), "y");
  Outcome outcome;
  outcome.result = host_executor::run(options, [&] {
    fastreg::LaunchConfig launch = config(unsigned(clusters * blocks), kThreads, kScratch);
    launch.cluster = unsigned(blocks);
    fastreg::launch(launch, cluster_sum<bug>, in.data(), out.data(), n);
  });
  outcome.values_right = true;
  for (int b = 0; b < clusters * blocks; ++b) {
    if (!(out[size_t(b)] == sum_of(x, size_t(b / blocks) * n, size_t(n)))) outcome.values_right = false;
  }
  return outcome;
}

// The kernels that sum all of x over several blocks: launch(x, partial, counter, y, n).
template <class Launch>
Outcome total_case(const host_executor::Options& options, unsigned blocks, size_t results, Launch launch) {
  const int n = 900;
  const std::vector<float> x = values(n);
  host_executor::Buffer<float> in(x, "x"), partial(blocks, "partial"), out(results, "y");
  host_executor::Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter");
  Outcome outcome;
  outcome.result =
      host_executor::run(options, [&] { launch(in.data(), partial.data(), counter.data(), out.data(), n); });
  outcome.values_right = true;
  for (const float total : out) {
    if (!(total == sum_of(x, 0, size_t(n)))) outcome.values_right = false;
  }
  return outcome;
}

template <Bug bug>
Outcome grid_sum_case(const host_executor::Options& options) {
  const unsigned blocks = 6;
  return total_case(options, blocks, blocks, [&](auto... arguments) {
    fastreg::LaunchConfig launch = config(blocks, kThreads, kScratch);
    launch.cooperative = bug != Bug::grid_barrier_without_cooperation;
    fastreg::launch(launch, grid_sum<bug>, arguments...);
  });
}

template <Bug bug>
Outcome last_block_sum_case(const host_executor::Options& options) {
  const unsigned blocks = 9;
  return total_case(options, blocks, 1, [&](auto... arguments) {
    fastreg::launch(config(blocks, kThreads, kScratch), last_block_sum<bug>, arguments...);
  });
}

inline Outcome fenced_last_block_sum_case(const host_executor::Options& options) {
  const unsigned blocks = 9;
  return total_case(options, blocks, 1, [&](auto... arguments) {
    fastreg::launch(config(blocks, kThreads, kScratch), fenced_last_block_sum, arguments...);
  });
}

template <Bug bug>
Outcome pipeline_case(const host_executor::Options& options) {
  const int tiles = 9, tile = int(kThreads) * 4;
  const std::vector<float> x = values(size_t(tiles) * tile);
  host_executor::Buffer<float> in(x, "x"), out(x.size(), "y");
  Outcome outcome;
  outcome.result = host_executor::run(options, [&] {
    fastreg::launch(config(2, kThreads, 2 * size_t(tile) * sizeof(float)), pipeline<bug>, in.data(), out.data(), tiles);
  });
  outcome.values_right = true;
  for (int t = 0; t < tiles; ++t) {
    for (int i = 0; i < tile; ++i) {
      if (!(out[size_t(t) * tile + i] == x[size_t(t) * tile + (i + 4) % tile])) outcome.values_right = false;
    }
  }
  return outcome;
}

template <Bug bug>
Outcome bulk_double_case(const host_executor::Options& options) {
  const int slabs = 5, slab = 96;
  const std::vector<float> x = values(size_t(slabs) * slab);
  host_executor::Buffer<float> in(x, "x"), out(x.size(), "y");
  Outcome outcome;
  outcome.result = host_executor::run(options, [&] {
    fastreg::launch(config(1, kThreads, slab * sizeof(float)), bulk_double<bug>, in.data(), out.data(), slabs, slab);
  });
  outcome.values_right = true;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!(out[i] == 2.0f * x[i])) outcome.values_right = false;
  }
  return outcome;
}

template <Bug bug>
Outcome overlap_case(const host_executor::Options& options) {
  const int n = 700;
  const std::vector<float> x = values(n);
  host_executor::Buffer<float> in(x, "x"), between(x.size(), "y"), out(x.size(), "z");
  Outcome outcome;
  outcome.result = host_executor::run(options, [&] {
    fastreg::launch(config(3, kThreads, 0), produce, in.data(), between.data(), n);
    fastreg::LaunchConfig second = config(3, kThreads, 0);
    second.overlap_previous = true;
    fastreg::launch(second, consume<bug>, between.data(), out.data(), n);
  });
  outcome.values_right = true;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!(out[i] == 2.0f * (x[i] + 1.0f))) outcome.values_right = false;
  }
  return outcome;
}

}  // namespace selftest
