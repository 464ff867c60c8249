// The executor on correct kernels: right values and no report in any schedule, right counts, refusals, replay.
#include <vector>

#include "cases.h"
#include "cpp/testing.h"
#include "host_executor/buffer.h"

namespace selftest {
namespace {

using host_executor::Device;
using host_executor::Options;
using host_executor::Policy;
using host_executor::Schedule;
using testing::expect;
using testing::expect_equal;

int random_schedules() {
  switch (testing::flavour) {
    case testing::Flavour::plain:
      return 30;
    case testing::Flavour::asan:
      return 5;
    default:
      return 2;
  }
}

const testing::Test clean("correct kernels are clean", [] {
  const std::pair<const char*, Case> cases[] = {
      {"normalise_rows", normalise_rows_case<Bug::none>},
      {"count_positive", count_positive_case<Bug::none>},
      {"copy", copy_case<Bug::none>},
      {"cluster_sum", cluster_sum_case<Bug::none>},
      {"grid_sum", grid_sum_case<Bug::none>},
      {"last_block_sum", last_block_sum_case<Bug::none>},
      {"fenced_last_block_sum", fenced_last_block_sum_case},
      {"pipeline", pipeline_case<Bug::none>},
      {"bulk_double", bulk_double_case<Bug::none>},
      {"overlap", overlap_case<Bug::none>},
  };
  for (const auto& [name, run] : cases) {
    for (const Schedule& schedule : host_executor::schedules(random_schedules())) {
      Options options;
      options.schedule = schedule;
      options.buffers_only = true;
      const Outcome outcome = run(options);
      const std::string what = std::string(name) + " under " + to_string(schedule);
      expect(outcome.result.ok(), what + ": " + outcome.result.message());
      expect(outcome.values_right, what + ": wrong values");
    }
  }
});

const testing::Test counted("traffic is counted", [] {
  Options options;
  options.count = true;
  {
    const host_executor::Counts counts = copy_case<Bug::none>(options).result.counts_of("copy");
    const uint64_t vectors = 200, tail = 3, bytes = vectors * 16 + tail * 2;
    expect_equal(counts.launches, 1u, "launches");
    expect_equal(counts.blocks, 2u, "blocks");
    expect_equal(counts.threads, 128u, "threads");
    for (const host_executor::Traffic& traffic : {counts.load, counts.store}) {
      expect_equal(traffic.accesses, vectors + tail, "accesses");
      expect_equal(traffic.bytes, bytes, "bytes");
      // 200 vectors are 6 full warps and one of 8 lanes; then one request for the tail.
      expect_equal(traffic.requests, 8u, "requests");
      expect_equal(traffic.sectors, vectors * 16 / 32 + 1, "sectors");
    }
  }
  {
    const host_executor::Counts counts = copy_case<Bug::half_used_sectors>(options).result.counts_of("copy");
    expect(counts.load.sector_use() < 0.55, "half-used sectors show: " + std::to_string(counts.load.sector_use()));
  }
  {
    const host_executor::Counts counts = bulk_double_case<Bug::none>(options).result.counts_of("bulk_double");
    expect_equal(counts.load.bytes, 5u * 96 * 4, "bytes loaded in bulk");
    expect_equal(counts.store.bytes, 5u * 96 * 4, "bytes stored in bulk");
    expect_equal(counts.bulk_bytes, 2u * 5 * 96 * 4, "bulk bytes");
  }
});

const testing::Test conflicts("bank conflicts are counted", [] {
  Options options;
  options.count = true;
  // One warp stores and loads once each. Stride 1: none. Stride 2: two lanes a bank. Stride 33: none. Stride 32: all
  // lanes in one bank.
  const std::pair<int, uint64_t> expected[] = {{1, 0}, {2, 2 * 1}, {33, 0}, {32, 2 * 31}};
  for (const auto& [stride, conflicts] : expected) {
    host_executor::Buffer<float> in(values(32), "x"), out(32, "y");
    const host_executor::Result result = host_executor::run(options, [&, stride = stride] {
      fastreg::launch(config(1, 32, size_t(32 * stride) * sizeof(float)), shared_stride, in.data(), out.data(), stride);
    });
    const host_executor::Counts counts = result.counts_of("shared_stride");
    expect_equal(counts.shared_requests, 2u, "requests");
    expect_equal(counts.bank_conflicts, conflicts, "bank conflicts of stride " + std::to_string(stride));
    expect_equal(counts.load.bytes, 32u * 4, "shared memory is not counted as global");
  }
});

__global__ void nothing() {}

cudaError_t try_launch(const Device& device, const std::function<void(fastreg::LaunchConfig&)>& change) {
  fastreg::LaunchConfig launch = config(8, 64, 0);
  change(launch);
  Options options;
  options.device = device;
  cudaError_t error = cudaSuccess;
  host_executor::run(options, [&] { error = fastreg::launch(launch, nothing); });
  return error;
}

const testing::Test refusals("impossible launches are refused", [] {
  using Config = fastreg::LaunchConfig;
  const Device device;
  Device ampere;
  ampere.major = 8;
  const auto refused = [&](const Device& on, const char* what, cudaError_t expected,
                           const std::function<void(Config&)>& change) {
    expect_equal(std::string(cudaGetErrorName(try_launch(on, change))), cudaGetErrorName(expected), what);
  };
  refused(device, "usual launch", cudaSuccess, [](Config&) {});
  refused(device, "empty grid", cudaErrorInvalidConfiguration, [](Config& c) { c.grid = dim3(0); });
  refused(device, "grid.y", cudaErrorInvalidConfiguration, [](Config& c) { c.grid = dim3(1, 65536); });
  refused(device, "grid.z", cudaErrorInvalidConfiguration, [](Config& c) { c.grid = dim3(1, 1, 65536); });
  refused(device, "empty block", cudaErrorInvalidConfiguration, [](Config& c) { c.block = dim3(32, 0); });
  refused(device, "large block", cudaErrorInvalidConfiguration, [](Config& c) { c.block = dim3(160); });
  refused(device, "block.z", cudaErrorInvalidConfiguration, [](Config& c) { c.block = dim3(1, 1, 65); });
  refused(device, "shared memory", cudaErrorInvalidValue, [](Config& c) { c.shared_bytes = 228 * 1024; });
  refused(device, "largest shared memory", cudaSuccess, [](Config& c) { c.shared_bytes = 227 * 1024; });
  refused(device, "cluster", cudaSuccess, [](Config& c) { c.cluster = 8; });
  refused(device, "cluster that does not divide the grid", cudaErrorInvalidClusterSize,
          [](Config& c) { c.cluster = 3; });
  refused(device, "cluster of 32", cudaErrorInvalidClusterSize, [](Config& c) {
    c.grid = dim3(32);
    c.cluster = 32;
  });
  refused(device, "cluster larger than the device", cudaErrorInvalidClusterSize, [](Config& c) {
    c.cluster = 8;
    c.shared_bytes = 200 * 1024;
  });
  refused(ampere, "cluster before sm_90", cudaErrorNotSupported, [](Config& c) { c.cluster = 2; });
  refused(device, "cooperative", cudaSuccess, [](Config& c) {
    c.grid = dim3(16);
    c.cooperative = true;
  });
  refused(device, "cooperative and too large", cudaErrorCooperativeLaunchTooLarge, [](Config& c) {
    c.grid = dim3(17);
    c.cooperative = true;
  });
  expect_equal(int(cudaGetLastError()), int(cudaErrorCooperativeLaunchTooLarge), "the last error stays");
  expect_equal(int(cudaGetLastError()), int(cudaSuccess), "until it is read");
});

__global__ void record_order(unsigned* counter, unsigned* order) {
  order[atomicAdd(counter, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

std::vector<unsigned> order_under(const Schedule& schedule) {
  host_executor::Buffer<unsigned> counter(std::vector<unsigned>{0}, "counter"), order(512, "order");
  Options options;
  options.schedule = schedule;
  host_executor::run(options, [&] { fastreg::launch(config(8, 64, 0), record_order, counter.data(), order.data()); });
  return {order.begin(), order.end()};
}

const testing::Test replay("schedules replay", [] {
  expect(order_under({Policy::pct, 7}) == order_under({Policy::pct, 7}), "one seed, one order");
  expect(order_under({Policy::pct, 7}) != order_under({Policy::pct, 8}), "another seed, another order");
  const std::vector<unsigned> forward = order_under({Policy::forward, 0}), reverse = order_under({Policy::reverse, 0});
  for (unsigned i = 0; i < 512; ++i) {
    expect_equal(forward[i], i, "forward");
    expect_equal(reverse[i], 511 - i, "reverse");
  }
});

__global__ void warp_functions(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const auto put = [&](unsigned slot, unsigned value) { out[slot * 32 + lane] = value; };
  put(0, __shfl_sync(0xFFFFFFFFu, lane, 5));
  put(1, __shfl_sync(0xFFFFFFFFu, lane, 5, 8));
  put(2, __shfl_xor_sync(0xFFFFFFFFu, lane, 3));
  put(3, __shfl_up_sync(0xFFFFFFFFu, lane, 2));
  put(4, __shfl_down_sync(0xFFFFFFFFu, lane, 2));
  put(5, __shfl_down_sync(0xFFFFFFFFu, lane, 2, 4));
  put(6, __ballot_sync(0xFFFFFFFFu, lane % 3 == 0));
  put(7, unsigned(__any_sync(0xFFFFFFFFu, lane == 9)));
  put(8, unsigned(__all_sync(0xFFFFFFFFu, lane != 9)));
  put(9, __reduce_add_sync(0xFFFFFFFFu, lane));
  // Two masks at once.
  put(10, lane < 16 ? __shfl_sync(0x0000FFFFu, lane, 3) : __shfl_sync(0xFFFF0000u, lane, 20));
  put(11, unsigned(__syncthreads_count(lane < 7)));
  put(12, unsigned(__syncthreads_and(lane < 7)));
  put(13, unsigned(__syncthreads_or(lane < 7)));
}

const testing::Test warps("warp functions", [] {
  for (const Schedule& schedule : host_executor::schedules(3)) {
    host_executor::Buffer<unsigned> out(14 * 32, "out");
    Options options;
    options.schedule = schedule;
    const auto result =
        host_executor::run(options, [&] { fastreg::launch(config(1, 32, 0), warp_functions, out.data()); });
    expect(result.ok(), result.message());
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned expected[14] = {5,
                                     lane / 8 * 8 + 5,
                                     lane ^ 3,
                                     lane < 2 ? lane : lane - 2,
                                     lane > 29 ? lane : lane + 2,
                                     lane % 4 > 1 ? lane : lane + 2,
                                     0x49249249u,
                                     1,
                                     0,
                                     496,
                                     lane < 16 ? 3u : 20u,
                                     7,
                                     0,
                                     1};
      for (unsigned slot = 0; slot < 14; ++slot) {
        expect_equal(out[slot * 32 + lane], expected[slot], "function " + std::to_string(slot));
      }
    }
  }
});

__global__ void spin_for_ever(const unsigned* flag) {
  while (fastreg::load_coherent(flag) == 0) {
  }
}

const testing::Test spinning("a kernel that spins for ever is reported", [] {
  host_executor::Buffer<unsigned> flag(std::vector<unsigned>{0}, "flag");
  const auto result = host_executor::run({}, [&] { fastreg::launch(config(1, 32, 0), spin_for_ever, flag.data()); });
  expect(!result.errors.empty() && result.errors[0].find("spins, for ever") != std::string::npos, result.message());
});

const testing::Test outside("a launch outside of run() executes at once", [] {
  host_executor::Buffer<float> in(values(40), "x"), out(40, "y");
  expect_equal(int(fastreg::launch(config(1, 64, kScratch), normalise_rows<Bug::none>, in.data(), out.data(), 40)),
               int(cudaSuccess), "launch");
  expect_equal(out.unwritten(), 0u, "unwritten");
  expect_equal(int(cudaMemsetAsync(out.data(), 0, 40 * sizeof(float))), int(cudaSuccess), "memset");
  expect_equal(out[39], 0.0f, "memset");
});

const testing::Test intrinsics("arithmetic of the language", [] {
  expect_equal(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu), 0xFFFFFFFEu, "__umulhi");
  expect_equal(__umul64hi(~0ull, ~0ull), ~0ull - 1, "__umul64hi");
  expect_equal(__brev(0x00000001u), 0x80000000u, "__brev");
  expect_equal(__brev(0x12345678u), 0x1E6A2C48u, "__brev");
  expect_equal(__clz(1), 31, "__clz");
  expect_equal(__clz(0), 32, "__clz");
  expect_equal(__ffs(8), 4, "__ffs");
  expect_equal(__popc(0xF0F0u), 8, "__popc");
  expect_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7520u), 0x77552200u, "__byte_perm");
  expect_equal(__funnelshift_l(0x80000000u, 1u, 1), 3u, "__funnelshift_l");
  expect_equal(__funnelshift_r(0u, 1u, 1), 0x80000000u, "__funnelshift_r");
  expect_equal(__float_as_uint(1.0f), 0x3F800000u, "__float_as_uint");
  expect_equal(__fmaf_rn(1.0f + 1.1920929e-7f, 1.0f + 1.1920929e-7f, -1.0f), 2.3841858e-7f + 1.4210855e-14f,
               "__fmaf_rn rounds once");
});

}  // namespace
}  // namespace selftest
