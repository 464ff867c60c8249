// What fused operations work on: a tile of some hundred elements, taken from memory piece by piece, that stays in the
// first-level cache while one stage after another goes over it. Each stage is a function of its own, the same in
// forward and backward, so that both compute the very same numbers, and an activation is compiled once.
#pragma once

namespace fastreg::cpu::FASTREG_ISA {

constexpr int kPieceStep = 16;  // pieces start at multiples of it within a tile: whole vectors

// Elements that lie together: where in memory, where in the tile, and how many. position: where their coefficients
// begin, the channel or the first column. ahead: how far from an element to prefetch, 0 for not at all; again_ahead:
// the same where a pass before may have read the elements: x and dy.
struct Piece {
  int64_t offset, position;
  int at, count;
  int64_t ahead, again_ahead;
};

// From a piece of so many elements to the next.
FASTREG_HD int64_t piece_pitch(int64_t count) { return (count + kPieceStep - 1) / kPieceStep * kPieceStep; }

struct Tile {
  Piece pieces[kTile / kPieceStep];
  int number = 0, size = 0;  // of pieces; of the tile, what lies between pieces included

  FASTREG_HD void clear() { number = size = 0; }
  FASTREG_HD int64_t left() const { return kTile - size; }
  FASTREG_HD void add(int64_t offset, int64_t position, int64_t count, int64_t ahead = 0, int64_t again_ahead = 0) {
    pieces[number++] = {offset, position, size, int(count), ahead, again_ahead};
    size += int(piece_pitch(count));
  }
  FASTREG_HD const Piece* begin() const { return pieces; }
  FASTREG_HD const Piece* end() const { return pieces + number; }
};

// Zero to begin with: stages work on what lies between pieces as well.
template <class C>
struct alignas(64) TileBuffer {
  C values[kTile] = {};
};

// Bit i of an array and, above it, those that follow: at least 25. Some bytes beyond the last one may be read.
FASTREG_HD uint32_t bits_at(const void* bits, int64_t i) {
  uint32_t word;
  memcpy(&word, static_cast<const char*>(bits) + i / 8, sizeof word);
  return word >> (i % 8);
}
// The same, of an array of so many bytes that ends there.
FASTREG_HD uint32_t bits_at(const uint8_t* bits, int64_t bytes, int64_t i) {
  const int64_t byte = i / 8;
  if (__builtin_expect(byte + 4 <= bytes, 1)) return bits_at(bits, i);
  uint32_t word = 0;
  for (int64_t b = byte; b < bytes; ++b) word |= uint32_t(bits[b]) << (8 * (b - byte));
  return word >> (i % 8);
}

FASTREG_HD uint32_t low_lanes(int64_t count) { return (uint32_t(1) << count) - 1; }

// Writes runs of bits, each from any bit of an array on. The bytes at a run's ends may hold bits of others, who may
// write theirs at the same time: they are or'ed in, so that all have to be zero before.
class BitWriter {
 public:
  FASTREG_HD explicit BitWriter(uint8_t* bits) : bits_(bits) {}

  // Where the next bit goes.
  FASTREG_HD void seek(int64_t position) {
    if (position == position_) return;
    finish();
    position_ = position;
    next_ = bits_ + position / 8;
    have_ = int(position % 8);
    is_shared_ = have_ != 0;
  }

  // The first `count` bits of a vector's, `whole` if those are all.
  template <class Whole>
  FASTREG_HD void push(uint32_t bits, Whole, int count) {
    word_ |= uint64_t(Whole::value ? bits : bits & low_lanes(count)) << have_;
    have_ += count;
    position_ += count;
    while (have_ >= 32) {
      if (is_shared_) {
        put_byte();
      } else {
        const uint32_t low = uint32_t(word_);
        memcpy(next_, &low, sizeof low);
        next_ += sizeof low;
        word_ >>= 32;
        have_ -= 32;
      }
    }
  }
  FASTREG_HD void finish() {
    while (have_ > 0) {
      is_shared_ |= have_ < 8;
      put_byte();
    }
    word_ = 0;
    have_ = 0;
  }

 private:
  FASTREG_HD void put_byte() {
    if (is_shared_) {
      __atomic_fetch_or(next_, uint8_t(word_), __ATOMIC_RELAXED);
    } else {
      *next_ = uint8_t(word_);
    }
    is_shared_ = false;
    ++next_;
    word_ >>= 8;
    have_ -= 8;
  }

  uint8_t* bits_;
  uint8_t* next_ = nullptr;
  int64_t position_ = -1;
  uint64_t word_ = 0;
  int have_ = 0;            // bits of word_ that are to be written, the others' below them included
  bool is_shared_ = false;  // whether the next byte holds bits of others
};

// f(i, rest) for the vectors of a piece, rest being how many elements there are from i on.
template <class C, class F>
FASTREG_HD void for_each_vector(const Piece& p, F&& f) {
  constexpr int kStep = kLanes<C>;
  int i = 0;
  for (; i + kStep <= p.count; i += kStep) f(i, std::true_type{}, kStep);
  if (i < p.count) f(i, std::false_type{}, p.count - i);
}

// Keep bits of elements, in memory order, and the factor of those that are kept.
template <class C>
struct Dropping {
  const uint64_t* keep;  // null: nothing is dropped; some bytes beyond the last bit may be read
  C scale;
  int64_t first = 0;  // the element that bit 0 belongs to

  FASTREG_HD uint32_t operator()(int64_t element) const { return bits_at(keep, element - first); }
};

// keep ? v scale : 0
template <class C>
FASTREG_HD vector_of<C> dropped(vector_of<C> v, const Dropping<C>& drop, int64_t element) {
  return drop.keep ? choose(drop(element), v * broadcast(drop.scale), broadcast(C(0))) : v;
}

template <class T>
FASTREG_HD void prefetch_with(const Piece& piece, const T* p) {
  if (piece.ahead) prefetch(p + piece.ahead);
}
template <class T>
FASTREG_HD void prefetch_again(const Piece& piece, const T* p) {
  if (piece.again_ahead) prefetch(p + piece.again_ahead);
}

// Elements of a tile, in memory or in a buffer.
template <class T>
struct Operand {
  const T* values;
  bool in_buffer;
  FASTREG_HD const T* operator[](const Piece& p) const { return values + (in_buffer ? p.at : p.offset); }
  FASTREG_HD int64_t ahead(const Piece& p) const { return in_buffer ? 0 : p.again_ahead; }
  FASTREG_HD void prefetch(const Piece& p, int i) const {
    if (!in_buffer) prefetch_again(p, values + p.offset + i);
  }
};
template <class T>
FASTREG_HD Operand<T> in_memory(const T* p) {
  return {p, false};
}
template <class C>
FASTREG_HD Operand<C> in_buffer(const C* p) {
  return {p, true};
}

// ---- Stages: from memory, in the tile, to memory ----

template <class T>
__attribute__((noinline)) void load_tile(const Tile& tile, const T* x, compute_t<T>* to) {
  using C = compute_t<T>;
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      prefetch_again(p, x + p.offset + i);
      store(to + p.at + i, load_some(x + p.offset + i, whole, rest));
    });
}

// to = keep ? x scale : 0
template <class T>
__attribute__((noinline)) void load_dropped(const Tile& tile, const T* x, compute_t<T>* to,
                                            const Dropping<compute_t<T>>& drop) {
  using C = compute_t<T>;
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      prefetch_again(p, x + p.offset + i);
      store(to + p.at + i, dropped<C>(load_some(x + p.offset + i, whole, rest), drop, p.offset + i));
    });
}

template <class T>
__attribute__((noinline)) void store_tile(const Tile& tile, const compute_t<T>* from, T* y) {
  using C = compute_t<T>;
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      prefetch_with(p, y + p.offset + i);
      store_some(y + p.offset + i, whole, rest, load(from + p.at + i));
    });
}

// y = keep ? from scale : 0
template <class T>
__attribute__((noinline)) void store_dropped(const Tile& tile, const compute_t<T>* from, T* y,
                                             const Dropping<compute_t<T>>& drop) {
  using C = compute_t<T>;
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      prefetch_with(p, y + p.offset + i);
      store_some(y + p.offset + i, whole, rest, dropped<C>(load(from + p.at + i), drop, p.offset + i));
    });
}

// y = keep ? from scale + residual : residual
template <class T>
__attribute__((noinline)) void store_dropped_sum(const Tile& tile, const compute_t<T>* from, const T* residual, T* y,
                                                 const Dropping<compute_t<T>>& drop) {
  using C = compute_t<T>;
  const bool drops = drop.keep != nullptr;
  const vector_of<C> scale = broadcast(drops ? drop.scale : C(1));
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto whole, int rest) {
      const vector_of<C> other = load_some(residual + p.offset + i, whole, rest);
      const vector_of<C> kept = load(from + p.at + i) * scale + other;
      store_some(y + p.offset + i, whole, rest, drops ? choose(drop(p.offset + i), kept, other) : kept);
    });
}

// Writes whether each element's gate is open.
template <class C>
__attribute__((noinline)) void write_gates(const Tile& tile, ActivationKind kind, const C* z, uint8_t* gates) {
  const auto write = [&](auto is_open) {
    BitWriter writer(gates);
    for (const Piece& p : tile) {
      writer.seek(p.offset);
      for_each_vector<C>(
          p, [&](int i, auto whole, int rest) { writer.push(lane_bits(is_open(load(z + p.at + i))), whole, rest); });
    }
    writer.finish();
  };
  switch (kind) {
    case ActivationKind::relu:
      return write([](auto z) { return ~(z <= C(0)); });
    case ActivationKind::relu6:
      return write([](auto z) { return (z > C(0)) & (z < C(6)); });
    case ActivationKind::leaky_relu:
      return write([](auto z) { return z > C(0); });
    default:
      return write([](auto z) { return (z > C(-3)) & (z < C(3)); });
  }
}

// g = g act'(z), by the gates of z.
template <class C>
__attribute__((noinline)) void differentiate_gated(const Tile& tile, const Activation& act, const uint8_t* gates,
                                                   int64_t gate_bytes, C* g) {
  const C closed = gated_derivative(act.kind, false, C(act.parameter));
  const bool closes = act.kind != ActivationKind::leaky_relu;
  const vector_of<C> if_open = broadcast(gated_derivative(act.kind, true, C(act.parameter))),
                     if_closed = broadcast(closed), zero = broadcast(C(0));
  for (const Piece& p : tile)
    for_each_vector<C>(p, [&](int i, auto, int) {
      const vector_of<C> v = load(g + p.at + i);
      store(g + p.at + i, choose(bits_at(gates, gate_bytes, p.offset + i), v * if_open, closes ? zero : v * if_closed));
    });
}

}  // namespace fastreg::cpu::FASTREG_ISA
