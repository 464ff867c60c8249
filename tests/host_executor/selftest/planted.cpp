// The kernels with mistakes planted: each must be reported, by the net that the table names.
#include <map>
#include <vector>

#include "cases.h"
#include "cpp/testing.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __asan_default_options() { return "halt_on_error=0:exitcode=0:symbolize=0:log_path=/dev/null"; }
#endif
#if defined(__SANITIZE_THREAD__)
// Memory that was reported before is reported again.
extern "C" const char* __tsan_default_options() {
  return "exitcode=0:symbolize=0:suppress_equal_addresses=0:report_thread_leaks=0:log_path=/"
         "dev/null";
}
#endif

namespace selftest {
namespace {

using host_executor::Options;
using host_executor::Schedule;

// What can report a mistake: some net in every binary, ThreadSanitizer alone, or only the counts.
enum class Nets { any, thread_sanitizer, counts };

struct Planted {
  const char* name;
  Nets nets;
  Case run;
};

const std::vector<Planted>& planted() {
  static const std::vector<Planted> all = {
      {"block: barrier before the partial sums", Nets::any, normalise_rows_case<Bug::no_barrier_before_partials>},
      {"block: barrier after the partial sums", Nets::any, normalise_rows_case<Bug::no_barrier_after_partials>},
      {"block: barrier before the total", Nets::any, normalise_rows_case<Bug::no_barrier_before_total>},
      {"block: early exit before a barrier", Nets::any, normalise_rows_case<Bug::early_exit>},
      {"block: shared memory read one past its end", Nets::any, normalise_rows_case<Bug::one_past_shared_read>},
      {"block: shared memory written one past its end", Nets::any, normalise_rows_case<Bug::one_past_shared_write>},
      {"block: uninitialised shared memory", Nets::any, normalise_rows_case<Bug::uninitialised_shared>},
      {"block: global memory read one past its end", Nets::any, normalise_rows_case<Bug::one_past_global_read>},
      {"block: global memory written one past its end", Nets::any, normalise_rows_case<Bug::one_past_global_write>},
      {"block: divergent barrier", Nets::any, normalise_rows_case<Bug::divergent_barrier>},
      {"block: unwritten output", Nets::any, normalise_rows_case<Bug::unwritten_output>},
      {"warp: shuffle mask without a lane", Nets::any, normalise_rows_case<Bug::wrong_shuffle_mask>},
      {"warp: mask with exited lanes", Nets::any, count_positive_case<Bug::mask_of_exited_lanes>},
      {"copy: misaligned 16-byte access", Nets::any, copy_case<Bug::misaligned_access>},
      {"copy: tail left out", Nets::any, copy_case<Bug::missing_tail>},
      {"copy: half-used sectors", Nets::counts, copy_case<Bug::half_used_sectors>},
      {"cluster: barrier before the read", Nets::any, cluster_sum_case<Bug::no_cluster_barrier_before_read>},
      {"cluster: relaxed barrier before the read", Nets::thread_sanitizer,
       cluster_sum_case<Bug::relaxed_cluster_barrier_before_read>},
      {"cluster: barrier before the exit", Nets::any, cluster_sum_case<Bug::no_cluster_barrier_before_exit>},
      {"cluster: arrive without wait", Nets::any, cluster_sum_case<Bug::no_cluster_wait>},
      {"grid: barrier", Nets::any, grid_sum_case<Bug::no_grid_barrier>},
      {"grid: barrier without a cooperative launch", Nets::any, grid_sum_case<Bug::grid_barrier_without_cooperation>},
      {"grid: ticket without fence", Nets::thread_sanitizer, last_block_sum_case<Bug::ticket_without_fence>},
      {"grid: last block guessed, not counted", Nets::any, last_block_sum_case<Bug::ticket_not_counted>},
      {"grid: blocks write one address", Nets::any, last_block_sum_case<Bug::race_between_blocks>},
      {"asynchronous copy: no wait", Nets::any, pipeline_case<Bug::no_copy_wait>},
      {"asynchronous copy: wait for a group too few", Nets::any, pipeline_case<Bug::copy_wait_too_weak>},
      {"asynchronous copy: no barrier after the wait", Nets::any, pipeline_case<Bug::no_barrier_after_copy>},
      {"asynchronous copy: no barrier before the overwrite", Nets::any,
       pipeline_case<Bug::no_barrier_before_overwrite>},
      {"bulk copy: no wait", Nets::any, bulk_double_case<Bug::no_transaction_wait>},
      {"bulk copy: wrong parity", Nets::any, bulk_double_case<Bug::wrong_transaction_parity>},
      {"bulk copy: too few bytes expected", Nets::any, bulk_double_case<Bug::too_few_transaction_bytes>},
      {"bulk copy: no barrier after the initialisation", Nets::any,
       bulk_double_case<Bug::no_barrier_after_transaction_init>},
      {"bulk copy: no wait before reuse", Nets::any, bulk_double_case<Bug::no_wait_before_reuse>},
      {"bulk copy: no wait before the exit", Nets::any, bulk_double_case<Bug::no_wait_before_exit>},
      {"dependent launch: no wait", Nets::any, overlap_case<Bug::no_wait_for_previous_kernel>},
  };
  return all;
}

bool must_show(Nets nets) { return nets != Nets::thread_sanitizer || testing::flavour == testing::Flavour::tsan; }

// What reports this run, or "".
std::string net(const Planted& bug, const Outcome& outcome) {
  if (!outcome.result.errors.empty()) return "executor";
  if (outcome.result.sanitizer_reports > 0) {
    return testing::flavour == testing::Flavour::asan ? "AddressSanitizer" : "ThreadSanitizer";
  }
  if (!outcome.values_right) return "values";
  if (bug.nets == Nets::counts) {
    const host_executor::Counts counts = outcome.result.counts_of("copy");
    if (counts.load.sector_use() < 0.75 && counts.store.sector_use() < 0.75) return "sector counts";
  }
  return "";
}

const testing::Test planted_bugs("planted bugs are caught", [] {
  // The plain binary shows how many schedules it takes. Under a sanitizer the first that reports is enough: reports
  // are slow, and ThreadSanitizer has room for 8128 threads, those that got stuck included.
  const bool all_schedules = testing::flavour == testing::Flavour::plain;
  const auto schedules = host_executor::schedules(all_schedules ? 20 : 2);
  int caught = 0, expected = 0;
  for (const Planted& bug : planted()) {
    std::map<std::string, int> nets;
    int runs = 0, runs_that_report = 0;
    std::string first;
    for (const Schedule& schedule : schedules) {
      if (runs_that_report && !all_schedules) break;
      ++runs;
      Options options;
      options.schedule = schedule;
      options.count = bug.nets == Nets::counts;
      const Outcome outcome = bug.run(options);
      const std::string by = net(bug, outcome);
      if (by.empty()) continue;
      ++nets[by];
      ++runs_that_report;
      if (first.empty() && !outcome.result.errors.empty()) first = outcome.result.errors.front();
    }
    std::string line = std::string(bug.name) + ": reported in " + std::to_string(runs_that_report) + " of " +
                       std::to_string(runs) + " schedules";
    for (const auto& [by, times] : nets) line += ", " + by + " " + std::to_string(times);
    testing::note(line);
    if (!first.empty()) testing::note("    " + first);
    caught += runs_that_report > 0;
    if (must_show(bug.nets)) {
      ++expected;
      testing::expect(runs_that_report > 0, std::string("not caught: ") + bug.name);
    }
  }
  testing::note(std::to_string(caught) + " of " + std::to_string(planted().size()) + " planted bugs caught, " +
                std::to_string(expected) + " of them required of this binary");
});

}  // namespace
}  // namespace selftest
