// How far ahead of an element the next ones in the order of work lie: what is fetched meanwhile. None of it is outside
// of the tensor.
#pragma once

#include <cstdint>

namespace fastreg::cpu {

// A tensor of so many samples of `channels` times `size` elements, worked through by `together` channels: a stretch of
// their elements that lie together in the first sample, in the next one, and so on, then those of the next channels. In
// the rows layout rows are samples, and size is 1.
struct Stretches {
  int64_t samples, channels, size;
  int64_t together;

  constexpr int64_t length() const { return together * size; }
};

// From the elements of a stretch to those to be fetched: `before` from those at positions before `turn`, `after` from
// the others; 0: nothing is to be fetched.
struct Ahead {
  int64_t turn, before, after;
};

// Of the stretch of a sample from a channel on: what comes at least so many elements later, in the same stretch or the
// one after, or in short stretches at the same place of one to come.
constexpr Ahead ahead_in_stretch(const Stretches& s, int64_t channel, int64_t sample, int64_t least) {
  const int64_t length = s.length();
  const bool is_long = length > least;
  const int64_t later = sample + (is_long ? 1 : (least + length - 1) / length), groups = later / s.samples;
  const int64_t to_later = (later % s.samples - sample) * s.channels * s.size + groups * length;
  const bool exists = channel + (groups + 1) * s.together <= s.channels;
  if (!is_long) return {length, exists ? to_later : 0, 0};
  return {length - least, least, exists ? to_later - (length - least) : 0};
}

// Rows, `pitch` elements apart, that are worked through by groups, and in a group by steps of columns. From the
// elements of a group, beyond whose first one the tensor has `left`: the distance to those of a group at least so many
// elements later, or where there is none in long rows to columns to come. For steps from column `end` on nothing is to
// be fetched.
struct AheadInRows {
  int64_t distance, end;
};
constexpr AheadInRows ahead_in_rows(int64_t left, int64_t pitch, int64_t columns, int64_t group, int64_t step,
                                    int64_t least) {
  const int64_t elements = group * pitch, distance = (least + elements - 1) / elements * elements;
  if (distance + elements + step <= left) return {distance, columns};
  return columns > least + step ? AheadInRows{least, columns - least - step} : AheadInRows{0, 0};
}

}  // namespace fastreg::cpu
