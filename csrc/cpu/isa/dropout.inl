// Dropout, 64 elements at a time: eight Philox calls give 64 keep bits, one multiplication and one store each.
// Bytes moved per element: one read, one write.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

// Elements [0, 64) of x and y, or the first `count` of them.
template <class T>
FASTREG_HD void apply(const T* x, T* y, uint64_t keep, compute_t<T> scale) {
  using V = decltype(load(x));
  constexpr int kLanes = int(sizeof(V) / sizeof(compute_t<T>));
  const V factor = broadcast(scale);
  for (int i = 0; i < 64; i += kLanes) store(y + i, keep_lanes(load(x + i) * factor, uint32_t(keep >> i)));
}
template <class T>
FASTREG_HD void apply(const T* x, T* y, uint64_t keep, compute_t<T> scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    y[i] = (keep >> i) & 1 ? from_compute<T>(to_compute(x[i]) * scale) : from_compute<T>(0);
}

// `count` elements that stand together in the stream from element `start` on.
template <class T>
void dropout_run(const T* x, T* y, int64_t count, uint64_t start, const KeepGenerator& generator, compute_t<T> scale) {
  const int shift = int(start % kBlockElements);
  uint64_t block = start / kBlockElements;
  int64_t i = 0;
  if (shift == 0) {
    for (; i + 64 <= count; i += 64, block += 8) apply(x + i, y + i, generator(block), scale);
    if (i < count) apply(x + i, y + i, generator(block), scale, count - i);
  } else {
    // A window of 64 elements straddles two groups of eight blocks.
    uint64_t group = generator(block);
    for (; i < count; i += 64) {
      const uint64_t next = generator(block += 8);
      const uint64_t keep = group >> shift | next << (64 - shift);
      group = next;
      if (i + 64 <= count) {
        apply(x + i, y + i, keep, scale);
      } else {
        apply(x + i, y + i, keep, scale, count - i);
      }
    }
  }
}

template <class T>
void dropout(const T* x, T* y, int64_t begin, int64_t end, const DropoutArguments& a) {
  if (a.threshold.drops_all()) {
    memset(static_cast<void*>(y + begin), 0, size_t(end - begin) * sizeof(T));
    return;
  }
  const KeepGenerator generator(a.state, a.threshold);
  const auto scale = compute_t<T>(a.scale);
  for (int64_t i = begin; i < end;) {
    const int64_t rest_of_row = a.map.row - i % a.map.row;
    const int64_t count = end - i < rest_of_row ? end - i : rest_of_row;
    dropout_run(x + i, y + i, count, a.map(i), generator, scale);
    i += count;
  }
}

}  // namespace fastreg::cpu::FASTREG_ISA
