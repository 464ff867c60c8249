// The feature dropout kernel against its definition: the stream's own bits, draws counted by plain division.
#include "kernels/dropout/feature_dropout.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel_testing.h"
#include "kernels/dropout/stream_walk.h"

namespace fastreg {
namespace {

using host_executor::Buffer;
using host_executor::Schedule;
using testing::expect;
using testing::expect_equal;

constexpr RandomState kState = {0xFEDCBA9876543210ull, 0x300000000ull + 20};

// Contiguous [.., size] and channels-last [N, size, C].
FeatureMap contiguous(int64_t size) { return {size, 1}; }
FeatureMap channels_last(int64_t size, int64_t channels) { return {size * channels, channels}; }

IndexMap identity() { return {0, int64_t(1) << 40, 0}; }

struct Problem {
  int64_t n;
  FeatureMap features;
  double p = 0.3;
  IndexMap map = identity();
  size_t offset = 0, apart = 0;  // of all pointers, and how much further that of y, in elements
  bool adds = false, in_place = false;
  DropTransform transform = {keep_scale(p), -0.0, 0.0};
  int threads = 64;
};

std::string describe(const char* type, const Problem& q) {
  return std::string(type) + " n=" + std::to_string(q.n) + " period=" + std::to_string(q.features.period) +
         " width=" + std::to_string(q.features.width) + " p=" + std::to_string(q.p) + " map=(" +
         std::to_string(q.map.first) + "," + std::to_string(q.map.row) + "," + std::to_string(q.map.row_stride) +
         ") offset=" + std::to_string(q.offset) + " apart=" + std::to_string(q.apart) + (q.adds ? " residual" : "") +
         (q.in_place ? " in place" : "") + " threads=" + std::to_string(q.threads);
}

bool reference_kept(int64_t j, const Problem& q) {
  const int64_t draw = j / q.features.period * q.features.width + j % q.features.width;
  const auto element = uint64_t(q.map.first + draw / q.map.row * q.map.row_stride + draw % q.map.row);
  return keep_bits(element / 8, kState, drop_threshold(q.p)) >> (element % 8) & 1;
}

template <class T>
T input(int64_t i) {
  if (i % 13 == 5) return from_compute<T>(std::numeric_limits<compute_t<T>>::infinity());
  if (i % 13 == 9) return from_compute<T>(std::numeric_limits<compute_t<T>>::quiet_NaN());
  return testing::from_double<T>(double(i * 7919 % 1009 - 504) / 32.0);
}
template <class T>
T residual_input(int64_t i) {
  return testing::from_double<T>(double(i * 104729 % 977 - 488) / 8.0);
}

DropoutParameters parameters_of(const Problem& q) {
  DropoutParameters parameters;
  parameters.state.seed = kState.seed;
  parameters.state.offset = kState.offset;
  parameters.threshold = drop_threshold(q.p);
  parameters.transform = q.transform;
  parameters.map = q.map;
  return parameters;
}

template <class T>
void check(const Problem& q, const Schedule& schedule) {
  const auto n = size_t(q.n);
  const std::string what = describe(testing::type_name<T>(), q);
  Buffer<T> x(n, "x", q.offset), r(n, "residual", q.offset), y(n, "y", q.offset + q.apart);
  for (size_t i = 0; i < n; ++i) x[i] = input<T>(int64_t(i)), r[i] = residual_input<T>(int64_t(i));
  T* out = q.in_place ? x.data() : y.data();
  testing::run_clean(schedule, false, what, [&] {
    return launch_feature_dropout<T>(x.data(), q.adds ? r.data() : nullptr, out, q.n, q.features, parameters_of(q),
                                     testing::virtual_device(q.threads));
  });
  using A = compute_t<T>;
  const Buffer<T>& result = q.in_place ? x : y;
  for (size_t i = 0; i < n; ++i) {
    const A shift = q.adds ? to_compute(residual_input<T>(int64_t(i))) : A(q.transform.shift);
    const A fill = q.adds ? shift : A(q.transform.fill);
    const bool kept = reference_kept(int64_t(i), q);
    const T expected =
        from_compute<T>(kept ? std::fma(to_compute(input<T>(int64_t(i))), A(q.transform.scale), shift) : fill);
    const bool right = testing::same_bits(result[i], expected) ||
                       (std::isnan(testing::to_double(result[i])) && std::isnan(testing::to_double(expected)));
    if (!expect(right, what + ": element " + std::to_string(i) + " is " +
                           std::to_string(testing::to_double(result[i])) + ", expected " +
                           std::to_string(testing::to_double(expected)) + " under " + to_string(schedule))) {
      return;
    }
  }
}

const testing::Test divider("divider: exact up to 2^63", [] {
  const int64_t most = std::numeric_limits<int64_t>::max();
  const auto divisors = {int64_t(1),
                         int64_t(2),
                         int64_t(3),
                         int64_t(7),
                         int64_t(8),
                         int64_t(49),
                         int64_t(641),
                         int64_t(3136),
                         int64_t(1) << 31,
                         (int64_t(1) << 31) + 1,
                         (int64_t(1) << 32) - 1,
                         (int64_t(1) << 62) + 1,
                         most};
  for (const int64_t d : divisors) {
    const Divider divide(d);
    for (const int64_t multiple : {int64_t(0), int64_t(1), int64_t(2), most / d / 2, most / d})
      for (const int64_t off : {-1, 0, 1}) {
        if (multiple > most / d || (off < 0 && multiple == 0)) continue;
        const uint64_t n = uint64_t(multiple) * uint64_t(d) + uint64_t(off);
        if (n > uint64_t(most)) continue;
        expect_equal(divide(n), n / uint64_t(d), std::to_string(n) + " / " + std::to_string(d));
      }
  }
});

// The arithmetic of tensors with more than 2^31 elements, without the memory.
const testing::Test far_elements("feature dropout: elements beyond 2^31", [] {
  for (const FeatureMap& features :
       {contiguous(1), contiguous(5), contiguous(3136), contiguous((int64_t(1) << 33) + 3), channels_last(3136, 64),
        channels_last(9, 3), channels_last(int64_t(1) << 20, 4099), channels_last(1, 7)}) {
    for (const IndexMap& map : {identity(), IndexMap{77, 1000, 4000}, IndexMap{int64_t(1) << 45, 12, 16}}) {
      const Problem q = {0, features, 0.4, map};
      const FeatureWalk walk(features, 256);
      const StreamMap stream(map);
      for (const int64_t near :
           {int64_t(0), int64_t(1) << 31, int64_t(1) << 32, int64_t(1) << 40, features.period << 4})
        for (int64_t j = std::max<int64_t>(near - 20, 0); j < near + 20; ++j) {
          KeepBits keep(kState, drop_threshold(q.p));
          const uint32_t bits = walk.keep_bits_of(uint64_t(j), 8, stream, keep);
          for (int e = 0; e < 8; ++e)
            if (!expect_equal(bool(bits >> e & 1), reference_kept(j + e, q),
                              describe("", q) + " j=" + std::to_string(j) + " e=" + std::to_string(e)))
              return;
        }
    }
  }
});

const testing::Test layouts("feature dropout kernel: layouts, sizes, types, alignment", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      using T = decltype(type);
      for (const Problem& q :
           {Problem{5 * 300, contiguous(300)}, Problem{1, contiguous(1)}, Problem{600, contiguous(1)},
            Problem{1029, contiguous(3)}, Problem{21 * 49, contiguous(49)}, Problem{4096, contiguous(1024)},
            Problem{4096, contiguous(4096)}, Problem{2 * 9 * 64, channels_last(9, 64)},
            Problem{3 * 50 * 3, channels_last(50, 3)}, Problem{3 * 7 * 24, channels_last(7, 24)},
            Problem{2 * 5 * 100, channels_last(5, 100)}, Problem{4 * 300, channels_last(1, 300)}}) {
        Problem variant = q;
        check<T>(variant, schedule);
        variant.adds = true;
        variant.offset = 1;
        check<T>(variant, schedule);
        variant.adds = false;
        variant.in_place = true;
        check<T>(variant, schedule);
        variant.in_place = false;
        variant.adds = true;
        variant.apart = 1;
        check<T>(variant, schedule);
      }
    });
  }
});

const testing::Test arguments("feature dropout kernel: probabilities, maps, transforms, block sizes", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    for (const FeatureMap& features : {contiguous(49), contiguous(640), channels_last(10, 32), channels_last(10, 12)}) {
      for (const double p : {0.5, 1.0 / 3.0, 1e-9, 1.0 - 1e-9, 0.0, 1.0}) {
        Problem q = {1920, features, p};
        check<float>(q, schedule);
        q.adds = true;
        check<bfloat16>(q, schedule);
      }
      for (const IndexMap& map : {IndexMap{64, 1 << 30, 0}, IndexMap{3, 1 << 30, 0}, IndexMap{8, 24, 64},
                                  IndexMap{5, 7, 13}, IndexMap{int64_t(1) << 40, 16, 20}}) {
        Problem q = {1920, features, 0.3, map};
        check<float>(q, schedule);
        check<half>(q, schedule);
      }
      Problem alpha = {1920, features};
      alpha.transform = {0.8864, 0.1945, -1.3633};
      check<bfloat16>(alpha, schedule);
      check<double>(alpha, schedule);
      for (const int threads : {32, 128}) {
        alpha.threads = threads;
        check<float>(alpha, schedule);
      }
    }
  }
});

const testing::Test states("feature dropout kernel: state in memory", [] {
  Buffer<float> x(std::vector<float>(320, 1.0f), "x"), y(320, "y");
  Buffer<int64_t> seed(std::vector<int64_t>{int64_t(kState.seed)}, "seed");
  Buffer<int64_t> offset(std::vector<int64_t>{int64_t(kState.offset) - 8}, "offset"), used(2, "used");
  const Problem q = {320, contiguous(10), 0.5};
  DropoutParameters parameters = parameters_of(q);
  parameters.state.seed_pointer = seed.data();
  parameters.state.seed = 99;  // not used
  parameters.state.offset = 8;
  parameters.state.offset_pointer = offset.data();
  parameters.state.used = used.data();
  testing::run_clean({}, false, "state in memory", [&] {
    return launch_feature_dropout<float>(x.data(), nullptr, y.data(), 320, q.features, parameters,
                                         testing::virtual_device());
  });
  expect_equal(used[0], int64_t(kState.seed), "seed used");
  expect_equal(used[1], int64_t(kState.offset), "offset used");
  for (int64_t i = 0; i < 320; ++i)
    expect_equal(y[size_t(i)], reference_kept(i, q) ? 2.0f : 0.0f, "element " + std::to_string(i));
});

const testing::Test nothing("feature dropout kernel: no elements, no launch", [] {
  const auto result = testing::run_clean({}, true, "n=0", [&] {
    return launch_feature_dropout<float>(nullptr, nullptr, nullptr, 0, contiguous(1), parameters_of({0, contiguous(1)}),
                                         testing::virtual_device());
  });
  expect(result.counts.empty(), "a kernel was launched");
});

const testing::Test traffic("feature dropout kernel: moves what its header promises", [] {
  testing::for_each_type([&](auto type) {
    using T = decltype(type);
    const std::string name = testing::type_name<T>();
    const int64_t size = 512, n = 16 * size;
    for (const bool adds : {false, true}) {
      Problem q = {n, contiguous(size), 0.5};
      Buffer<T> x(size_t(n), "x"), r(size_t(n), "residual"), y(size_t(n), "y");
      for (int64_t i = 0; i < n; ++i) x[size_t(i)] = input<T>(i), r[size_t(i)] = residual_input<T>(i);
      const auto result = testing::run_clean({}, true, name + " traffic", [&] {
        return launch_feature_dropout<T>(x.data(), adds ? r.data() : nullptr, y.data(), n, q.features, parameters_of(q),
                                         testing::virtual_device());
      });
      uint64_t kept = 0;
      for (int64_t i = 0; i < n; ++i) kept += reference_kept(i, q);
      expect(kept > 0 && kept < uint64_t(n), name + ": features of both kinds");
      const host_executor::Counts counts = result.counts_of("feature_dropout_kernel");
      expect_equal(counts.launches, 1u, name + " launches");
      const auto expect_traffic = [&](const host_executor::Traffic& side, uint64_t elements, const std::string& what) {
        expect_equal(side.bytes, elements * sizeof(T), what + " bytes");
        expect_equal(side.accesses, elements * sizeof(T) / 16, what + " accesses are 16 bytes each");
        expect_equal(side.sectors, elements * sizeof(T) / 32, what + " sectors are used whole");
      };
      expect_traffic(counts.store, uint64_t(n), name + " stored");
      expect_traffic(counts.load, kept + (adds ? uint64_t(n) : 0), name + (adds ? " loaded with residual" : " loaded"));
    }
  });
});

}  // namespace
}  // namespace fastreg
