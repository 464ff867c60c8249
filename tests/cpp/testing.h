// The smallest test harness that does: tests register themselves, expectations count.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace testing {

// Tests of one file are a group: main()'s --group NAME takes the file's name without its ending.
struct Test {
  Test(const char* name, std::function<void()> body, const char* file = __builtin_FILE());
};

// Reports the message where the condition does not hold. Returns the condition.
bool expect(bool condition, const std::string& message, const char* file = __builtin_FILE(),
            int line = __builtin_LINE());

template <class A, class B>
bool expect_equal(const A& actual, const B& expected, const std::string& what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  if (actual == expected) return expect(true, "", file, line);
  std::ostringstream message;
  message << what << ": got " << actual << ", expected " << expected;
  return expect(false, message.str(), file, line);
}

// Thrown by a test whose rest cannot be done where it runs: not a failure, but counted.
struct CutShort : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Says what the tests run on; false where they cannot run. On a GPU: tests/on_device.
bool can_run();

// What a test has left the device in that no later test can recover from; "" if nothing. On a GPU: tests/on_device.
std::string broken();

// A line of the test's output: counts and tables that are worth a look when all is well.
void note(const std::string& line);

// The sanitizer that this binary was built with.
enum class Flavour { plain, asan, tsan };
constexpr Flavour flavour =
#if defined(__SANITIZE_ADDRESS__)
    Flavour::asan;
#elif defined(__SANITIZE_THREAD__)
    Flavour::tsan;
#else
    Flavour::plain;
#endif

}  // namespace testing
