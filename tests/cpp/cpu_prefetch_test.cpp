// Where the CPU's batch norm fetches memory ahead of its work: what comes next in it, and never past the tensor.
#include "cpu/isa/prefetch.h"

#include <string>
#include <vector>

#include "testing.h"

namespace fastreg::cpu {
namespace {

using testing::expect;

std::string described(const Stretches& s, int64_t channel, int64_t sample, int64_t position, int64_t least) {
  std::string text;
  for (const int64_t n : {s.samples, s.channels, s.size, s.together, channel, sample, position, least})
    text += std::to_string(n) + " ";
  return "samples, channels, size, together, channel, sample, position, least: " + text;
}

// Elements in the order of work: stretches of all samples, then of the next channels'.
std::vector<int64_t> order_of_work(const Stretches& s) {
  std::vector<int64_t> order;
  for (int64_t channel = 0; channel + s.together <= s.channels; channel += s.together)
    for (int64_t sample = 0; sample < s.samples; ++sample)
      for (int64_t position = 0; position < s.length(); ++position)
        order.push_back((sample * s.channels + channel) * s.size + position);
  return order;
}

// Every element but the last ones fetches one that comes `least` later in the order of work, in short stretches at most
// one stretch more.
void check_stretches(const Stretches& s, int64_t least) {
  const std::vector<int64_t> order = order_of_work(s);
  const int64_t length = s.length(), steps = length > least ? least : (least + length - 1) / length * length;
  size_t turn = 0;
  for (int64_t channel = 0; channel + s.together <= s.channels; channel += s.together)
    for (int64_t sample = 0; sample < s.samples; ++sample) {
      const Ahead ahead = ahead_in_stretch(s, channel, sample, least);
      for (int64_t position = 0; position < length; ++position, ++turn) {
        const int64_t distance = position < ahead.turn ? ahead.before : ahead.after;
        const size_t later = turn + size_t(steps);
        const int64_t expected = later < order.size() ? order[later] - order[turn] : 0;
        if (!expect(distance == expected, described(s, channel, sample, position, least) + "fetches " +
                                              std::to_string(distance) + " elements ahead instead of " +
                                              std::to_string(expected)))
          return;
      }
    }
}

const testing::Test fetches_what_comes_next("the CPU fetches what comes next", [] {
  for (const int64_t samples : {1, 2, 3, 9})
    for (const int64_t channels : {1, 4, 12})
      for (const int64_t size : {1, 7, 64, 300})
        for (const int64_t together : {1, 2, 4})
          for (const int64_t least : {1, 60, 128, 500})
            if (channels % together == 0) check_stretches({samples, channels, size, together}, least);
});

// Batches of one: a sample's elements are worked through as they lie in memory.
const testing::Test batch_of_one("the CPU fetches ahead in a batch of one", [] {
  for (const int64_t size : {49, 196, 784, 3136}) {
    const Ahead ahead = ahead_in_stretch({1, 72, size, 1}, 3, 0, 512);
    const int64_t in_channels = (512 + size - 1) / size * size, expected = size > 512 ? 512 : in_channels;
    expect(ahead.before == expected, "before the turn of " + std::to_string(size));
    if (size > 512) expect(ahead.after == 512, "after the turn of " + std::to_string(size));
  }
});

// A step of a group's rows is `step` columns, the last of which need not be there.
const testing::Test stays_inside_rows("the CPU fetches no rows past the last", [] {
  constexpr int64_t kGroup = 8, kStep = 64;
  for (const int64_t rows : {1, 2, 8, 9, 100})
    for (const int64_t pitch : {3, 64, 100, 8192})
      for (const int64_t first : {int64_t(0), pitch / 2})
        for (int64_t row = 0; row < rows; row += kGroup) {
          const int64_t elements = rows * pitch, at = row * pitch + first, columns = pitch - first;
          const AheadInRows ahead = ahead_in_rows(elements - at, pitch, columns, kGroup, kStep, 2048);
          const int64_t in_group = rows - row < kGroup ? rows - row : kGroup;
          for (int64_t c = 0; c < columns && c < ahead.end; c += kStep) {
            const int64_t last = at + (in_group - 1) * pitch + c + kStep - 1 + ahead.distance;
            if (!expect(ahead.distance >= 0 && last < elements,
                        std::to_string(rows) + " rows of " + std::to_string(pitch) + ", from row " +
                            std::to_string(row) + ", column " + std::to_string(c) + ": " +
                            std::to_string(ahead.distance) + " ahead"))
              return;
          }
        }
});

const testing::Test fetches_in_rows("the CPU fetches rows or columns to come", [] {
  const auto distance = [](int64_t left, int64_t pitch) {
    return ahead_in_rows(left, pitch, pitch, 8, 64, 2048).distance;
  };
  testing::expect_equal(distance(1000 * 64, 64), int64_t(2048), "groups of many short rows");
  testing::expect_equal(distance(1000 * 512, 512), int64_t(4096), "groups of many long rows");
  testing::expect_equal(distance(2 * 8192, 8192), int64_t(2048), "columns of two long rows");
  testing::expect_equal(distance(8 * 64, 64), int64_t(0), "nothing, in the last short rows");
});

}  // namespace
}  // namespace fastreg::cpu
