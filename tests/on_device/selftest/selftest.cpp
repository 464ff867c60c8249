// Tests of tests/on_device itself, on the fake runtime beside this file. The tests named "planted" must fail, the one
// named "fatal" ends the program, the one named "endless" never ends.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "host_executor/buffer.h"
#include "host_executor/executor.h"
#include "testing.h"

namespace {

using host_executor::Buffer;
using testing::expect;
using testing::expect_equal;

host_executor::Result run(const std::function<void()>& kernel) { return host_executor::run({}, kernel); }

const bool bare = std::getenv("FASTREG_ON_DEVICE_BARE") != nullptr;
// How the test of the exit status without a GPU takes it away.
const bool none = (fake::devices = std::getenv("FAKE_NO_DEVICE") ? 0 : 1) == 0;

const testing::Test mirror("correct: the host sees what kernels write, and they see what the host writes", [] {
  Buffer<int> x(std::vector<int>{1, 2, 3}, "x", 1), y(3, "y", 1);
  const auto add = [&] {
    for (int i = 0; i < 3; ++i) y.data()[i] = x.data()[i] + 10;
  };
  expect(run(add).ok(), "first");
  expect_equal(std::accumulate(y.begin(), y.end(), 0), 36, "sum");
  x[1] = 20;
  expect_equal(y[1], 12, "before the kernel has run again");
  expect(run(add).ok(), "second");
  expect_equal(y[1], 30, "after it");
  expect_equal(x[0], 1, "an input stays");
});

const testing::Test lazy("correct: only what the host looks at or has touched is copied", [] {
  Buffer<int> x(std::vector<int>{1}, "x"), never(1000, "never");
  const size_t uploads = fake::uploads, guards = bare ? 0 : 4;
  run([] {});
  expect_equal(fake::uploads, uploads + 1, "uploads");
  const size_t downloads = fake::downloads;
  run([] {});
  expect_equal(fake::downloads, downloads + guards, "downloads of guards alone");
  expect_equal(fake::uploads, uploads + 1, "nothing is uploaded again");
});

const testing::Test layout("correct: alignment, odd starts, empty buffers", [] {
  Buffer<double> aligned(5), odd(5, "odd", 1), empty(0);
  expect_equal(reinterpret_cast<uintptr_t>(aligned.data()) % 16, 0u, "aligned");
  expect_equal(reinterpret_cast<uintptr_t>(odd.data()) % 16, 8u, "odd");
  expect(empty.begin() == empty.end(), "empty");
  expect(run([] {}).ok(), "guards");
});

const testing::Test poison("correct: unwritten elements are counted", [] {
  Buffer<float> y(4);
  expect_equal(y.unwritten(), 4u, "at first");
  run([&] {
    for (size_t i = 0; i < 4; ++i) {
      if (i != 2 || bare) y.data()[i] = 0;
    }
  });
  expect_equal(y.unwritten(), bare ? 0u : 1u, "one is left out");
  y.poison();
  expect_equal(y.unwritten(), 4u, "again");
});

const testing::Test counts("correct but cut short: counts", [] {
  host_executor::Options options;
  options.count = true;
  host_executor::run(options, [] {});
  expect(false, "not reached");
});

const testing::Test overrun("planted: a write past the end", [] {
  Buffer<char> y(3, "y");
  const auto result = run([&] { y.data()[3] = 1; });
  expect(result.ok(), result.message());
});
const testing::Test underrun("planted: a write before the start", [] {
  Buffer<char> y(3, "y", 1);
  const auto result = run([&] { y.data()[-1] = 1; });
  expect(result.ok(), result.message());
});
const testing::Test broken("planted: a kernel that fails", [] {
  const auto result = run([] { fake::error = cudaErrorIllegalAddress; });
  expect(result.ok(), result.message());
});
const testing::Test left_behind("planted: an error from outside of run", [] {
  fake::error = cudaErrorIllegalAddress;
  run([] {});
});
const testing::Test wrong("planted: a wrong value, counted or not", [] {
  expect_equal(1, 2, "one");
  host_executor::Options options;
  options.count = true;
  host_executor::run(options, [] {});
});

const testing::Test fatal("fatal: a kernel that faults", [] {
  const auto result = run([] { fake::sticky = cudaErrorIllegalAddress; });
  expect(result.ok(), result.message());
});
const testing::Test after_fatal("after the fatal one: not reached", [] {});
const testing::Test endless("endless: a kernel that never ends", [] {
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
});

}  // namespace
