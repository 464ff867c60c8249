// main() of the C++ tests. Arguments: parts of the names of the tests to run, or --group FILE for those of a file;
// none: all. Each test's name is printed before it runs, so that the last one is known if the program ends there. Exit
// status 77 where they cannot run: nothing has been tested.
#include "testing.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

namespace testing {
namespace {

struct Case {
  const char* name;
  std::function<void()> body;
  std::string group;
};
std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
long expectations = 0, failures = 0;
constexpr long kShown = 20;  // failures of one test
constexpr int kCannotRun = 77;

// tests/cpp/dropout_test.cpp -> dropout_test
std::string stem(const std::string& file) {
  const std::string name = file.substr(file.find_last_of('/') + 1);
  return name.substr(0, name.find('.'));
}

bool wanted(const Case& test, int argc, char** argv) {
  bool any = argc <= 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--group") == 0 && i + 1 < argc) {
      any |= test.group == argv[++i];
    } else {
      any |= std::strstr(test.name, argv[i]) != nullptr;
    }
  }
  return any;
}

// Returns why the test was cut short, or "".
std::string run(const Case& test) {
  try {
    test.body();
  } catch (const CutShort& reason) {
    return reason.what();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  return "";
}

}  // namespace

#if !defined(FASTREG_ON_DEVICE)
bool can_run() { return true; }
std::string broken() { return ""; }
#endif

Test::Test(const char* name, std::function<void()> body, const char* file) {
  cases().push_back({name, std::move(body), stem(file)});
}

bool expect(bool condition, const std::string& message, const char* file, int line) {
  ++expectations;
  if (condition) return true;
  if (++failures <= kShown) std::printf("%s:%d: %s\n", file, line, message.c_str());
  return false;
}

void note(const std::string& line) { std::printf("  %s\n", line.c_str()); }

}  // namespace testing

int main(int argc, char** argv) {
  using testing::failures;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // in order with what the sanitizers write
  if (!testing::can_run()) return testing::kCannotRun;
  long run = 0, failed = 0, cut_short = 0;
  for (const auto& test : testing::cases()) {
    if (!testing::wanted(test, argc, argv)) continue;
    std::printf("running %s\n", test.name);
    const auto start = std::chrono::steady_clock::now();
    const long expectations = testing::expectations;
    failures = 0;
    const std::string reason = testing::run(test);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const char* const outcome = failures ? "FAILED" : reason.empty() ? "ok" : "CUT SHORT";
    std::printf("%s %s: %ld expectations, %ld failed, %.2f s%s\n", outcome, test.name,
                testing::expectations - expectations, failures, seconds, reason.empty() ? "" : ("; " + reason).c_str());
    ++run;
    failed += failures != 0;
    cut_short += failures == 0 && !reason.empty();
    if (const std::string error = testing::broken(); !error.empty()) {
      std::printf("the device is broken after %s: %s\n", test.name, error.c_str());
      break;
    }
  }
  std::printf("%ld tests, %ld failed, %ld cut short\n", run, failed, cut_short);
  return run == 0 || failed != 0;
}
