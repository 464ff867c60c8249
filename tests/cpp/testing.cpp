// main() of the C++ tests. Arguments: parts of the names of the tests to run; none: all.
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
};
std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
long expectations = 0, failures = 0;
constexpr long kShown = 20;  // failures of one test

bool wanted(const char* name, int argc, char** argv) {
  bool any = argc <= 1;
  for (int i = 1; i < argc; ++i) any |= std::strstr(name, argv[i]) != nullptr;
  return any;
}

}  // namespace

Test::Test(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }

bool expect(bool condition, const std::string& message, const char* file, int line) {
  ++expectations;
  if (condition) return true;
  if (++failures <= kShown) std::printf("%s:%d: %s\n", file, line, message.c_str());
  return false;
}

void note(const std::string& line) { std::printf("  %s\n", line.c_str()); }

}  // namespace testing

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // in order with what the sanitizers write
  long run = 0, failed = 0;
  for (const auto& test : testing::cases()) {
    if (!testing::wanted(test.name, argc, argv)) continue;
    const auto start = std::chrono::steady_clock::now();
    const long expectations = testing::expectations;
    testing::failures = 0;
    test.body();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s %s: %ld expectations, %ld failed, %.2f s\n", testing::failures ? "FAILED" : "ok", test.name,
                testing::expectations - expectations, testing::failures, seconds);
    ++run;
    failed += testing::failures != 0;
  }
  std::printf("%ld tests, %ld failed\n", run, failed);
  return run == 0 || failed != 0;
}
