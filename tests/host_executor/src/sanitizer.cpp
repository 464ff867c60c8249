#include "sanitizer.h"

#include <cstdio>

#include "machine.h"

namespace host_executor {
namespace {

int reports = 0;
bool untold = false;  // a report was made, and tell_where() has not been called since

}  // namespace

int sanitizer_reports() { return reports; }

void tell_where() {
  if (!untold) return;
  untold = false;
  std::fprintf(stderr, "host executor: the report here is of %s\n", machine.where().c_str());
}

#if defined(FASTREG_EXECUTOR_ASAN)
void watch_sanitizers() {
  __asan_set_error_report_callback([](const char*) {
    ++reports;
    untold = true;
    tell_where();  // now: the process may end with this report
  });
}
#else
void watch_sanitizers() {}
#endif

}  // namespace host_executor

#if defined(FASTREG_EXECUTOR_TSAN)
// ThreadSanitizer calls this hook, which it defines weakly, at each report; it holds locks then, so that hardly
// anything may be called.
extern "C" void __tsan_on_report(void*) {
  ++host_executor::reports;
  host_executor::untold = true;
}
#endif
