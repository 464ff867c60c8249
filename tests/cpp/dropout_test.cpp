// The dropout kernels against the definition of the stream, written out plainly here.
#include "kernels/dropout/dropout.h"

#include <cmath>
#include <limits>

#include "kernel_testing.h"

namespace fastreg {
namespace {

using host_executor::Buffer;
using host_executor::Schedule;
using testing::expect;
using testing::expect_equal;

// ---- The definition ----

struct Words {
  uint32_t word[4];
};

Words reference_philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c.word[0], p1 = 0xCD9E8D57ull * c.word[2];
    c = {{uint32_t(p1 >> 32) ^ c.word[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.word[3] ^ k1, uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

uint32_t reference_draw(uint64_t element, uint64_t seed, uint64_t call) {
  const uint64_t block = element / 8, slot = element % 8;
  const Words words = reference_philox({{uint32_t(call), uint32_t(call >> 32), uint32_t(block), uint32_t(block >> 32)}},
                                       uint32_t(seed), uint32_t(seed >> 32));
  return words.word[slot / 2] >> (16 * (slot % 2)) & 0xFFFFu;
}

bool reference_kept(uint64_t element, double p, uint64_t seed, uint64_t offset) {
  const auto threshold = uint64_t(std::floor(p * 4294967296.0 + 0.5));
  const uint64_t u = reference_draw(element, seed, offset / 4), v = reference_draw(element, seed, offset / 4 + 1);
  return !(u < threshold >> 16 || (u == threshold >> 16 && v < (threshold & 0xFFFFu)));
}

// A probability whose ties are decided by the second call either way, and a seed with ties of both kinds among the
// first `n` elements: they are rare.
constexpr double kTieProbability = (32768.0 * 65536.0 + 32768.0) / 4294967296.0;

uint64_t seed_with_ties(uint64_t n) {
  for (uint64_t seed = 1;; ++seed) {
    bool kept = false, dropped = false;
    for (uint64_t i = 0; i < n; ++i) {
      if (reference_draw(i, seed, 0) == 32768) (reference_kept(i, kTieProbability, seed, 0) ? kept : dropped) = true;
    }
    if (kept && dropped) return seed;
  }
}

struct KnownAnswer {
  double p;
  uint64_t seed, offset;
  const char* first;  // 64 elements, 1 where kept
  int64_t dropped;    // among 1 000 003
};

const testing::Test known_answers("dropout stream: known answers", [] {
  const Words zeros = reference_philox({{0, 0, 0, 0}}, 0, 0);
  expect(zeros.word[0] == 0x6627e8d5u && zeros.word[1] == 0xe169c58du && zeros.word[2] == 0xbc57ac4cu &&
             zeros.word[3] == 0x9b00dbd8u,
         "Philox4x32-10 of zeros");
  const Words pi = reference_philox({{0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u}}, 0xA4093822u, 0x299F31D0u);
  expect(
      pi.word[0] == 0xd16cfe09u && pi.word[1] == 0x94fdccebu && pi.word[2] == 0x5001e420u && pi.word[3] == 0x24126ea1u,
      "Philox4x32-10 of the digits of pi");
  const KnownAnswer answers[] = {
      {0.5, 0, 0, "1011111101011001100100000110110101010000111100000001011101011000", 498715},
      {0.1, 42, 8, "0111111111111111111111001111011111111111111111011110101111111111", 99623},
      {1.0 / 3.0, (uint64_t(1) << 63) + 12345, uint64_t(1) << 34,
       "1110111101111010011111011010111011001111011000111111111001001101", 333983},
      {0.001, 7, 4, "1111111111111111111111111111111111111111111111111111111111111111", 979},
      {kTieProbability, 1, 0, nullptr, 500214},
  };
  for (const KnownAnswer& answer : answers) {
    const std::string what = "p=" + std::to_string(answer.p);
    for (int i = 0; answer.first && i < 64; ++i) {
      expect_equal(reference_kept(uint64_t(i), answer.p, answer.seed, answer.offset), answer.first[i] == '1', what);
    }
    int64_t dropped = 0;
    for (int64_t block = 0; block * 8 < 1000003; ++block) {
      const uint32_t bits = keep_bits(uint64_t(block), {answer.seed, answer.offset}, drop_threshold(answer.p));
      for (int64_t i = block * 8; i < block * 8 + 8 && i < 1000003; ++i) dropped += !(bits >> (i % 8) & 1);
    }
    expect_equal(dropped, answer.dropped, what + " dropped");
  }
});

// ---- The kernels ----

struct Problem {
  int64_t n;
  double p;
  RandomState state;
  IndexMap map;
  size_t offset = 0;  // of the pointers, in elements
  bool in_place = false;
  size_t apart = 0;  // how much further y is off, in elements
  DropTransform transform = {keep_scale(p), -0.0, 0.0};
  int multiprocessors = testing::virtual_device().multiprocessors;
};

std::string describe(const char* type, const Problem& problem) {
  return std::string(type) + " n=" + std::to_string(problem.n) + " p=" + std::to_string(problem.p) + " map=(" +
         std::to_string(problem.map.first) + "," + std::to_string(problem.map.row) + "," +
         std::to_string(problem.map.row_stride) + ") offset=" + std::to_string(problem.offset) +
         " apart=" + std::to_string(problem.apart) + (problem.in_place ? " in place" : "");
}

// Every value of interest, and infinities and NaN, which must vanish where they are dropped.
template <class T>
T input(int64_t i) {
  if (i % 13 == 5) return from_compute<T>(std::numeric_limits<compute_t<T>>::infinity());
  if (i % 13 == 9) return from_compute<T>(std::numeric_limits<compute_t<T>>::quiet_NaN());
  return testing::from_double<T>(double(i * 7919 % 1009 - 504) / 32.0);
}

template <class T>
void check(const Problem& problem, const Schedule& schedule, int threads = 64) {
  const auto n = size_t(problem.n);
  const std::string what = describe(testing::type_name<T>(), problem) + " threads=" + std::to_string(threads);
  Buffer<T> x(n, "x", problem.offset), y(n, "y", problem.offset + problem.apart);
  for (size_t i = 0; i < n; ++i) x[i] = input<T>(int64_t(i));
  T* out = problem.in_place ? x.data() : y.data();
  DropoutParameters parameters;
  parameters.state.seed = problem.state.seed;
  parameters.state.offset = problem.state.offset;
  parameters.threshold = drop_threshold(problem.p);
  parameters.transform = problem.transform;
  parameters.map = problem.map;
  Device device = testing::virtual_device(threads);
  device.multiprocessors = problem.multiprocessors;
  testing::run_clean(schedule, false, what,
                     [&] { return launch_dropout(x.data(), out, problem.n, parameters, device); });
  using A = compute_t<T>;
  const A scale = A(problem.transform.scale), shift = A(problem.transform.shift), fill = A(problem.transform.fill);
  for (size_t i = 0; i < n; ++i) {
    const int64_t j = int64_t(i);
    const uint64_t element =
        uint64_t(problem.map.first + j / problem.map.row * problem.map.row_stride + j % problem.map.row);
    const bool kept = reference_kept(element, problem.p, problem.state.seed, problem.state.offset);
    const T expected = from_compute<T>(kept ? std::fma(to_compute(input<T>(j)), scale, shift) : fill);
    const bool right = testing::same_bits(out[i], expected) ||
                       (std::isnan(testing::to_double(out[i])) && std::isnan(testing::to_double(expected)));
    if (!expect(right, what + ": element " + std::to_string(i) + " is " + std::to_string(testing::to_double(out[i])) +
                           ", expected " + std::to_string(testing::to_double(expected)) + " under " +
                           to_string(schedule))) {
      return;
    }
  }
}

constexpr RandomState kState = {0x0123456789ABCDEFull, 0x400000000ull + 12};

IndexMap identity(int64_t n) { return {0, n, 0}; }

const testing::Test sizes("dropout kernel: sizes, types, alignment", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      using T = decltype(type);
      // Around the vector, the warp's tile of 256, tiles in flight, and the grid; remainders 3 and 7 of 8.
      for (const int64_t n : {1, 7, 8, 9, 31, 33, 255, 256, 257, 515, 1023, 2048 + 11, 5000}) {
        check<T>({n, 0.3, kState, identity(n)}, schedule);
        // Both off a 16-byte boundary by one element; by different numbers of elements.
        check<T>({n, 0.3, kState, identity(n), 1}, schedule);
        check<T>({n, 0.3, kState, identity(n), 1, false, 1}, schedule);
      }
    });
  }
});

// Groups of tiles need a tensor that fills the device: a device of one multiprocessor.
const testing::Test groups("dropout kernel: groups of tiles", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      using T = decltype(type);
      const int64_t n = 4 * 1024 + 1024 + 256 + 13;
      for (const size_t offset : {size_t(0), 16 / sizeof(T) - 1}) {
        Problem problem = {n, 0.3, kState, identity(n), offset};
        problem.multiprocessors = 1;
        check<T>(problem, schedule);
        problem.map = {5, 1000, 1024};
        problem.in_place = true;
        check<T>(problem, schedule);
      }
    });
  }
});

// What alpha dropout, and the original form of dropout, ask for. One rounding, and no filling from a kept element.
const testing::Test transforms("dropout kernel: transforms", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      using T = decltype(type);
      for (const DropTransform& transform : {DropTransform{0.8864, 0.1945, -1.3633}, DropTransform{1.0, -0.0, 0.0},
                                             DropTransform{1.0 / 3.0, 1e-3, std::nan("")}}) {
        for (const size_t offset : {0, 1})
          check<T>({1500, 0.2, kState, identity(1500), offset, false, 0, transform}, schedule);
      }
    });
  }
});

// Signed zeros come through the default transform.
const testing::Test zeros("dropout kernel: zeros keep their signs", [] {
  const int64_t n = 64;
  Buffer<float> x(std::vector<float>(size_t(n), -0.0f), "x"), y(size_t(n), "y");
  DropoutParameters parameters;
  parameters.threshold = drop_threshold(0.25);
  parameters.transform.scale = keep_scale(0.25);
  parameters.map = identity(n);
  testing::run_clean({}, false, "zeros",
                     [&] { return launch_dropout(x.data(), y.data(), n, parameters, testing::virtual_device()); });
  for (int64_t i = 0; i < n; ++i)
    expect_equal(std::signbit(y[size_t(i)]), reference_kept(uint64_t(i), 0.25, 0, 0), "sign " + std::to_string(i));
});

const testing::Test maps("dropout kernel: index maps", [] {
  for (const Schedule& schedule : testing::kernel_schedules()) {
    testing::for_each_type([&](auto type) {
      using T = decltype(type);
      const int64_t n = 1003;
      for (const IndexMap& map : {IndexMap{64, n, 0}, IndexMap{3, n, 0}, IndexMap{8, 24, 64}, IndexMap{5, 7, 13},
                                  IndexMap{0, 16, 20}, IndexMap{int64_t(1) << 40, n, 0}}) {
        check<T>({n, 0.3, kState, map}, schedule);
      }
    });
  }
});

const testing::Test probabilities("dropout kernel: probabilities, in place, block sizes", [] {
  const uint64_t tie_seed = seed_with_ties(8192);
  for (const Schedule& schedule : testing::kernel_schedules()) {
    for (const double p : {0.5, 0.1, 1.0 / 3.0, 0.001, 1e-9, 1.0 - 1e-9, 1.0}) {
      check<float>({3000, p, kState, identity(3000)}, schedule);
      check<bfloat16>({3000, p, kState, identity(3000), 0, true}, schedule);
    }
    check<float>({8192, kTieProbability, {tie_seed, 0}, identity(8192)}, schedule);
    for (const int threads : {32, 128}) check<float>({3000, 0.25, kState, identity(3000)}, schedule, threads);
  }
});

const testing::Test states("dropout kernel: state in memory", [] {
  const int64_t n = 100;
  Buffer<float> x(std::vector<float>(size_t(n), 1.0f), "x"), y(size_t(n), "y"), z(size_t(n), "z");
  Buffer<int64_t> seed(std::vector<int64_t>{-5}, "seed"), offset(std::vector<int64_t>{40}, "offset"), used(2, "used");
  DropoutParameters parameters;
  parameters.state.seed = 99;  // not used
  parameters.state.seed_pointer = seed.data();
  parameters.state.offset = 8;
  parameters.state.offset_pointer = offset.data();
  parameters.state.used = used.data();
  parameters.threshold = drop_threshold(0.5);
  parameters.transform.scale = keep_scale(0.5);
  parameters.map = identity(n);
  testing::run_clean({}, false, "state in memory",
                     [&] { return launch_dropout(x.data(), y.data(), n, parameters, testing::virtual_device()); });
  expect_equal(used[0], -5, "seed used");
  expect_equal(used[1], 48, "offset used");
  for (size_t i = 0; i < size_t(n); ++i) {
    expect_equal(y[i], reference_kept(i, 0.5, uint64_t(-5), 48) ? 2.0f : 0.0f, "element " + std::to_string(i));
  }
});

const testing::Test nothing("dropout kernel: no elements, no launch", [] {
  const auto result = testing::run_clean({}, true, "n=0", [&] {
    return launch_dropout<float>(nullptr, nullptr, 0, DropoutParameters{}, testing::virtual_device());
  });
  expect(result.counts.empty(), "a kernel was launched");
});

// Accesses to both tensors off a 16-byte boundary by `offset` elements, and what is moved.
template <class T>
void check_traffic(int64_t n, size_t offset, uint64_t narrow, const std::string& what) {
  Buffer<T> x(size_t(n), "x", offset), y(size_t(n), "y", offset);
  for (int64_t i = 0; i < n; ++i) x[size_t(i)] = input<T>(i);
  DropoutParameters parameters;
  parameters.threshold = drop_threshold(0.5);
  parameters.transform.scale = keep_scale(0.5);
  parameters.map = identity(n);
  Device device = testing::virtual_device();
  device.multiprocessors = 1;
  const auto result =
      testing::run_clean({}, true, what, [&] { return launch_dropout(x.data(), y.data(), n, parameters, device); });
  const host_executor::Counts counts = result.counts_of("dropout_kernel");
  expect_equal(counts.launches, 1u, what + ": launches");
  for (const host_executor::Traffic& side : {counts.load, counts.store}) {
    expect_equal(side.bytes, uint64_t(n) * sizeof(T), what + ": bytes");
    expect_equal(side.accesses, narrow + (uint64_t(n) - narrow) * sizeof(T) / 16, what + ": accesses of 16 bytes");
    // A lane with narrow accesses counts twice as a request of its own: for them, and for those that it left out.
    const uint64_t sectors = (uint64_t(n) * sizeof(T) + offset * sizeof(T) + 31) / 32;
    expect(side.sectors <= sectors + 2 * narrow,
           what + ": sectors are used whole, got " + std::to_string(side.sectors) + " for " + std::to_string(sectors));
  }
}

const testing::Test traffic("dropout kernel: moves what its header promises", [] {
  testing::for_each_type([&](auto type) {
    using T = decltype(type);
    const std::string name = testing::type_name<T>();
    const uint64_t width = 16 / sizeof(T);
    check_traffic<T>(8192, 0, 0, name);
    check_traffic<T>(512, 0, 0, name + " small");
    // Shared misalignment costs the two accesses that the ends cut, and nothing else.
    check_traffic<T>(8192, 1, width, name + " off by one element");
  });
});

}  // namespace
}  // namespace fastreg
