// Merging the statistics of parts: against the moments of all values together, in double.
#include "kernels/batch_norm/merge.h"

#include <cmath>
#include <limits>

#include "kernel_testing.h"
#include "kernels/batch_norm/batch_norm.h"

namespace fastreg {
namespace {

using host_executor::Buffer;
using host_executor::Schedule;
using testing::expect;

constexpr double kEps = 1e-5, kMomentum = 0.3;

// Value i of a channel: near 100 times its number, and a float.
double value(int64_t channel, int64_t i) { return 100.0 * double(channel) + double(i * 7919 % 1009) / 256.0; }

bool close(double a, double b, double epsilon) { return std::abs(a - b) <= 8 * epsilon * std::abs(b); }

// parts: values per channel of each part.
template <class A>
void check(const std::vector<int64_t>& parts, int64_t channels, bool cumulative, const Schedule& schedule) {
  const std::string what = std::string(testing::type_name<A>()) + " channels=" + std::to_string(channels) +
                           " parts=" + std::to_string(parts.size()) + (cumulative ? " cumulative" : "");
  const int64_t pitch = 3 * channels + 1;
  Buffer<A> moments(size_t(pitch) * parts.size(), "moments"), stats(size_t(3 * channels), "stats");
  Buffer<A> running_mean(size_t(channels), "running_mean"), running_var(size_t(channels), "running_var");
  Buffer<double> count(1, "count");
  Buffer<int64_t> batches(1, "num_batches_tracked");
  batches[0] = 4;
  std::vector<double> mean(size_t(channels), 0), variance(size_t(channels), 0);
  int64_t total = 0;
  for (const int64_t n : parts) total += n;
  for (int64_t c = 0; c < channels; ++c) {
    running_mean[c] = A(2), running_var[c] = A(3);
    for (int64_t i = 0; i < total; ++i) mean[c] += value(c, i) / double(total);
    for (int64_t i = 0; i < total; ++i)
      variance[c] += (value(c, i) - mean[c]) * (value(c, i) - mean[c]) / double(total);
    int64_t first = 0;
    for (size_t part = 0; part < parts.size(); first += parts[part++]) {
      const double n = double(parts[part]), centre = n > 0 ? value(c, first) : 0;
      double delta = 0, var = 0;
      for (int64_t i = first; i < first + parts[part]; ++i) delta += (value(c, i) - centre) / n;
      for (int64_t i = first; i < first + parts[part]; ++i) {
        const double d = value(c, i) - centre - delta;
        var += d * d / n;
      }
      A* const row = moments.data() + int64_t(part) * pitch;
      row[c] = A(centre), row[channels + c] = A(delta), row[2 * channels + c] = A(1 / std::sqrt(var));
      row[3 * channels] = A(n);
    }
  }

  RunningUpdate running;
  running.mean = {running_mean.data(), sizeof(A) == sizeof(float)};
  running.var = {running_var.data(), sizeof(A) == sizeof(float)};
  running.num_batches_tracked = batches.data();
  running.cumulative = cumulative;
  running.factor = kMomentum;
  testing::run_clean(schedule, false, what, [&] {
    return launch_batch_norm_merge<A>(moments.data(), int64_t(parts.size()), channels, kEps, stats.data(), count.data(),
                                      running, testing::virtual_device());
  });

  const double epsilon = testing::epsilon<A>(), factor = cumulative ? 0.25 : kMomentum;
  expect(count[0] == double(total), what + ": count");
  expect(batches[0] == 4, what + ": num_batches_tracked is the operator's to count");
  for (int64_t c = 0; c < channels; ++c) {
    const std::string where = what + " channel " + std::to_string(c);
    if (total == 0) {
      expect(std::isnan(stats[2 * channels + c]), where + ": there is no deviation of nothing");
    } else {
      expect(close(double(stats[c]) + double(stats[channels + c]), mean[c], epsilon), where + ": mean");
      expect(close(stats[2 * channels + c], 1 / std::sqrt(variance[c] + kEps), epsilon), where + ": deviation");
    }
    const double new_mean = total > 0 ? 2 + factor * (mean[c] - 2) : 2;
    const double unbiased = variance[c] * double(total) / double(total - 1);
    const double new_var = total > 1 ? 3 + factor * (unbiased - 3) : 3;
    expect(close(running_mean[c], new_mean, epsilon), where + ": running mean");
    expect(close(running_var[c], new_var, epsilon), where + ": running variance");
  }
}

const testing::Test merge_kernel("batch norm merge kernel: parts of any size, empty ones too", [] {
  for (const Schedule& schedule : testing::kernel_schedules())
    for (const int64_t channels : {1, 63, 64, 65, 200})
      for (const auto& parts : std::vector<std::vector<int64_t>>{{9}, {4, 0, 7}, {0, 1, 1, 30}, {0, 0}, {1}}) {
        check<float>(parts, channels, false, schedule);
        check<double>(parts, channels, true, schedule);
      }
});

// What the GPU computes of counts, from the least exact estimate that its instruction may give and worse ones.
const testing::Test quotients("batch norm: quotients of counts from estimates", [] {
  for (double count = 1; count < 1e12; count = std::floor(1.7 * count + 1))
    for (const double share : {1e-9, 0.1, 1.0 / 3, 0.5, 0.77, 1.0})
      for (int ulps = -2; ulps <= 2; ++ulps) {
        const float whole = float(count), part = float(std::ceil(count * share));
        const float estimate = float(1 / double(whole)) * (1 + float(ulps) * 0x1p-23f);
        const double exact = double(part) / double(whole);
        const double error = std::abs(double(refined_quotient(part, whole, estimate)) - exact);
        expect(error <= 0x1p-23 * exact, "quotient of " + std::to_string(part) + " and " + std::to_string(whole));
      }
});

}  // namespace
}  // namespace fastreg
