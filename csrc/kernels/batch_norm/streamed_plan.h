// How the streamed kernels divide their work, for any C++ compiler.
#pragma once

#include <algorithm>

#include "kernels/batch_norm/plan.h"

namespace fastreg {

constexpr int kStreamedThreads = 256;  // of a block: see Device
constexpr int kWidestColumns = 32;     // threads side by side: 512 bytes of a row
constexpr int kBlocksPerProcessor = 8;
constexpr int64_t kLeastVectors = 8;  // that a thread should get, before a channel is divided among more blocks
constexpr int kSplitsTogether = 16;   // whose partial results one block merges
constexpr int kMostSplits = 512;      // of a group of channels

struct StreamedSplits {
  int columns;  // vectors side by side in a group of channels
  int64_t groups;
  int64_t length, split_length;  // of a channel: vectors (planes) or rows; of it, a block's
  int64_t splits;                // blocks of a group
};

inline StreamedSplits streamed_splits(const BatchNormShape& s, int vector, int threads, int multiprocessors) {
  StreamedSplits d = {1, s.channels, 0, 0, 0};
  if (s.rows) {
    const int64_t row_vectors = s.channels / vector;
    while (d.columns < kWidestColumns && d.columns < row_vectors) d.columns *= 2;
    d.groups = (row_vectors + d.columns - 1) / d.columns;
    d.length = s.per_channel();
  } else {
    d.length = s.planes * (s.size / vector);
  }
  const int64_t per_step = threads / d.columns;
  const int64_t useful = (d.length + per_step * kLeastVectors - 1) / (per_step * kLeastVectors);
  const int64_t wanted = int64_t(multiprocessors) * kBlocksPerProcessor / d.groups;
  const int64_t most = std::max<int64_t>(1, std::min({useful, wanted, int64_t(kMostSplits)}));
  d.split_length = (d.length + 2 * most - 1) / (2 * most) * 2;  // neighbours stay together: see epilogue.cuh
  d.splits = (d.length + d.split_length - 1) / d.split_length;
  return d;
}

}  // namespace fastreg
