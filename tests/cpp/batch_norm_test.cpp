// The streamed batch norm kernels, in evaluation and training.
#include "batch_norm_checks.h"

namespace fastreg {
namespace {

// One channel and many, fewer channels than a vector, sizes that vectors divide and sizes that they do not, two values
// a channel, one split and several.
const BatchNormShape kShapes[] = {
    {2, 1, 1, false},   {2, 3, 1, false},    {5, 3, 7, false},  {3, 4, 16, false}, {7, 2, 49, false},
    {4, 1, 900, false}, {2, 3, 1024, false}, {2, 1, 1, true},   {9, 8, 1, true},   {33, 5, 1, true},
    {6, 16, 9, true},   {64, 40, 3, true},   {500, 3, 1, true}, {300, 8, 4, true}, {2, 264, 2, true},
};

const testing::Test shapes("batch norm kernels: shapes, types, layouts", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      for (const BatchNormShape& shape : kShapes) check<decltype(type)>(shape, {}, schedule);
    });
  }
});

const testing::Test variants("batch norm kernels: alignment, parameters, momentum, large means", [] {
  Variant misaligned, bare, mixed, cumulative, far;
  misaligned.offset = 1;
  bare.parameters = false;
  mixed.float_values = true;
  cumulative.cumulative = true;
  far.mean = 1e4;
  far.deviation = 1e-2;
  for (const Schedule& schedule : testing::kernel_schedules()) {
    for (const BatchNormShape& shape : {kShapes[3], kShapes[6], kShapes[11]}) {
      testing::for_each_type([&](auto type) {
        using T = decltype(type);
        for (const Variant& v : {misaligned, bare, cumulative}) check<T>(shape, v, schedule);
      });
      check<half>(shape, mixed, schedule);
      check<bfloat16>(shape, mixed, schedule);
      check<float>(shape, far, schedule);
      check<double>(shape, far, schedule);
    }
  }
});

// So many blocks a channel that their results are merged by sets.
const BatchNormShape kManySplits[] = {{2, 1, 36000, false}, {9000, 8, 1, true}};

const testing::Test sets("batch norm kernels: splits of a channel by sets", [] {
  const auto schedules = testing::kernel_schedules();
  for (size_t i = 0; i < schedules.size(); i += 4)
    for (const BatchNormShape& shape : kManySplits) {
      const int64_t most = batch_norm_workspace(4, shape, testing::virtual_device()).tickets;
      expect(most >= 2 + 1, describe(shape) + ": several sets");
      check<float>(shape, {}, schedules[i]);
    }
});

// Results do not depend on the order in which blocks finish.
const testing::Test repeatable("batch norm kernels: repeatable bit for bit", [] {
  for (const BatchNormShape& shape :
       {BatchNormShape{4, 1, 900, false}, BatchNormShape{300, 8, 4, true}, kManySplits[0], kManySplits[1]}) {
    const Device device = testing::virtual_device();
    Problem p = problem_of(shape, 0.5, 1.0);
    Buffer<float> x(rounded<float>(p.x), "x");
    std::vector<float> first;
    for (const Schedule& schedule : testing::kernel_schedules()) {
      Buffer<float> y(p.x.size(), "y"), stats(3 * size_t(shape.channels), "stats");
      Scratch scratch(batch_norm_workspace(4, shape, device));
      ChannelStatistics statistics;
      statistics.stats = stats.data();
      statistics.eps = p.eps;
      testing::run_clean(schedule, false, describe(shape), [&] {
        return launch_batch_norm_train<float>(x.data(), y.data(), shape, {}, {}, statistics, {}, scratch.workspace(),
                                              device);
      });
      if (first.empty()) first.assign(y.begin(), y.end());
      expect(std::equal(first.begin(), first.end(), y.begin()), describe(shape) + " under " + to_string(schedule));
    }
  }
});

// Each kernel moves the tensors that the header names, once. What is read per channel is not counted.
const testing::Test traffic("batch norm kernels: move what their header promises", [] {
  testing::for_each_type([&](auto type) {
    using T = decltype(type);
    for (const BatchNormShape& shape : {BatchNormShape{8, 2, 1024, false}, BatchNormShape{1024, 64, 1, true}}) {
      const std::string what = std::string(testing::type_name<T>()) + " " + describe(shape);
      const Device device = testing::virtual_device();
      Problem p = problem_of(shape, 0.5, 1.0);
      Buffer<T> x(rounded<T>(p.x), "x"), dy(rounded<T>(p.dy), "dy");
      Buffer<T> y(p.x.size(), "y"), dx(p.x.size(), "dx");
      using A = compute_t<T>;
      Buffer<A> stats(3 * size_t(shape.channels), "stats"), coefficients(2 * size_t(shape.channels), "coefficients");
      const WorkspaceSize size = batch_norm_workspace(int(sizeof(T)), shape, device);
      ChannelStatistics statistics;
      statistics.stats = stats.data();
      statistics.eps = p.eps;
      Scratch forward_scratch(size), backward_scratch(size);
      const auto forward = testing::run_clean({}, true, what, [&] {
        return launch_batch_norm_train<T>(x.data(), y.data(), shape, {}, {}, statistics, {},
                                          forward_scratch.workspace(), device);
      });
      const auto backward = testing::run_clean({}, true, what, [&] {
        return launch_batch_norm_backward<T>(dy.data(), x.data(), dx.data(), shape, {}, statistics, {}, {},
                                             coefficients.data(), backward_scratch.workspace(), device);
      });
      // In evaluation, with and without gradients of the parameters.
      const auto channels = size_t(shape.channels);
      Buffer<A> ones(std::vector<A>(channels, A(1)), "running"), dweight(channels, "dweight"), dbias(channels, "dbias");
      const bool is_float = std::is_same<A, float>::value;
      ChannelStatistics running;
      running.running_mean = running.running_var = {ones.data(), is_float};
      const auto evaluated = [&](const ChannelValues& weight_sums, const ChannelValues& bias_sums) {
        Scratch scratch(size);
        dx.poison();
        return testing::run_clean({}, true, what, [&] {
          return launch_batch_norm_backward<T>(dy.data(), x.data(), dx.data(), shape, {}, running, weight_sums,
                                               bias_sums, coefficients.data(), scratch.workspace(), device);
        });
      };
      const auto eval_sums = evaluated({dweight.data(), is_float}, {dbias.data(), is_float});
      const auto eval_input = evaluated({}, {});
      const uint64_t bytes = p.x.size() * sizeof(T);
      // Each of the tensors moves once, in 16-byte accesses and whole sectors.
      const auto moved = [&](const host_executor::Traffic& traffic, const std::string& name) {
        expect_equal(traffic.bytes, bytes, what + " bytes of " + name);
        expect_equal(traffic.accesses, bytes / 16, what + " accesses of " + name);
        expect_equal(traffic.sectors, bytes / 32, what + " sectors of " + name);
      };
      const auto promised = [&](const host_executor::Result& result, const char* kernel,
                                const std::vector<const char*>& loaded, const std::vector<const char*>& stored) {
        const host_executor::Counts counts = result.counts_of(kernel);
        expect_equal(counts.launches, 1u, what + " launches of " + kernel);
        for (const char* name : loaded) moved(counts.load_of.at(name), std::string(name) + " by " + kernel);
        for (const char* name : stored) moved(counts.store_of.at(name), std::string(name) + " by " + kernel);
        for (const char* name : {"x", "dy", "y", "dx"}) {
          const auto listed = [&](const auto& names) {
            return std::find(names.begin(), names.end(), std::string(name)) != names.end();
          };
          expect(listed(loaded) || !counts.load_of.count(name), what + " " + kernel + " loads " + name);
          expect(listed(stored) || !counts.store_of.count(name), what + " " + kernel + " stores " + name);
        }
      };
      promised(forward, "moments_kernel", {"x"}, {});
      promised(forward, "normalize_kernel", {"x"}, {"y"});
      promised(backward, "grad_sums_kernel", {"x", "dy"}, {});
      promised(backward, "grad_input_kernel", {"x", "dy"}, {"dx"});
      promised(eval_sums, "grad_sums_kernel", {"x", "dy"}, {"dx"});
      expect_equal(eval_sums.counts_of("kernel").launches, 1u, what + " launches of eval_sums");
      promised(eval_input, "grad_input_kernel", {"dy"}, {"dx"});
      expect_equal(eval_input.counts_of("kernel").launches, 1u, what + " launches of eval_input");
    }
  });
});

}  // namespace
}  // namespace fastreg
