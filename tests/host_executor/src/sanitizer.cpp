#include "sanitizer.h"

#include <cstdio>

#include "machine.h"

namespace host_executor {
namespace {

int reports = 0;

// Called by the sanitizers, in the middle of a report.
[[maybe_unused]] void count_report() {
  ++reports;
  const std::string place = machine.where();
  if (!place.empty()) std::fprintf(stderr, "host executor: the report here is of %s\n", place.c_str());
}

}  // namespace

int sanitizer_reports() { return reports; }

#if defined(FASTREG_EXECUTOR_ASAN)
void watch_sanitizers() {
  __asan_set_error_report_callback([](const char*) { count_report(); });
}
#else
void watch_sanitizers() {}
#endif

}  // namespace host_executor

#if defined(FASTREG_EXECUTOR_TSAN)
// ThreadSanitizer calls this hook, which it defines weakly, at each report.
extern "C" void __tsan_on_report(void*) { host_executor::count_report(); }
#endif
