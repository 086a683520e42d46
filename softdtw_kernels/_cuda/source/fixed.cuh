// Differences of R in fixed point: the quickest numbers for many items.
//
// With R = D + softmin of the three cells before, each cell has u = R[i, j] - R[i-1, j] and v = R[i, j] - R[i, j-1], integers
// in units of gamma ln 2 / 2^S. With q the cost in these units, a = v[i-1, j], b = u[i, j-1] and m = min(0, a, b):
//
//     sum = 2^(m / 2^S) + 2^((m - a) / 2^S) + 2^((m - b) / 2^S),  s = m - 2^S log2(sum),  u = q + s - a,  v = q + s - b
//
// and the probabilities are the terms divided by their sum. Sums of integers are exact: neither the length of a path nor the
// size of costs makes an error grow, and the value is the sum of the differences along any staircase, divided by the scale.
// One term is 1, so that two exponentials do. An integer added to the bits of -32 is a float of that size, as its ulp is
// 2^-18: nothing is converted. What is left over by such tricks is the bias of all that is stored, BIAS.
//
// Two forms, with words of their own:
//   Short   32 bits, for differences and costs of up to some hundreds of gamma; says where they do not do
//   Long    the same integer modulo 2^32, and a float that tells how large it is: any range
// Neither knows forbidden cells, NaN, or gamma = 0: such an item is left to Scaled.
#pragma once
#include "numbers.cuh"

typedef unsigned int uint32;

__device__ __forceinline__ float as_float(uint32 x) { return __int_as_float(int(x)); }
__device__ __forceinline__ uint32 as_bits(float x) { return uint32(__float_as_int(x)); }
__device__ __forceinline__ uint32 least(uint32 x, uint32 y) { return x < y ? x : y; }
__device__ __forceinline__ uint32 most(uint32 x, uint32 y) { return x > y ? x : y; }

// y - a + t in one instruction, from which the compiler is not to take y + t away for others.
__device__ __forceinline__ uint32 without(uint32 y, uint32 a, uint32 t) {
#ifdef SOFTDTW_EMULATOR
  return y - a + t;
#else
  uint32 x;
  asm("{.reg .u32 d;\n sub.u32 d, %1, %2;\n add.u32 %0, d, %3;}" : "=r"(x) : "r"(y), "r"(a), "r"(t));
  return x;
#endif
}

// (h << BITS) + m, as a multiplication and addition
template <int BITS>
__device__ __forceinline__ uint32 shifted(uint32 h, uint32 m) {
#ifdef SOFTDTW_EMULATOR
  return (h << BITS) + m;
#else
  uint32 x;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(x) : "r"(h), "n"(1 << BITS), "r"(m));
  return x;
#endif
}

constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: plus an integer, it has this in its low bits
constexpr uint32 MAGIC_BITS = 0x4B400000u;
constexpr int FRACTION = 20;  // S: bits of a difference below gamma ln 2
constexpr int OF_EXP2 = FRACTION - 18;  // bits that the argument of an exponential has less
constexpr uint32 HALF = 1u << OF_EXP2 >> 1;
constexpr float UNITS = float(1 << FRACTION);

// As in the comment above: what all differences of an item are multiples of.
struct Scale {
  float scale;  // of the costs
  __device__ __forceinline__ explicit Scale(double gamma) : scale(float(LOG2_E / gamma * double(UNITS))) {}
  __device__ __forceinline__ bool is_usable() const { return scale > 1e-30f && scale < 1e30f; }
  // The exact integer, once more in the unit of the costs: by the scale that the costs were multiplied by.
  __device__ __forceinline__ double value(int64 sum) const { return double(sum) / double(scale); }
};

// Costs are rounded to 2^-FRACTION of a unit, and logarithms again: where all are rounded alike, by half of that each. The
// errors of fast_exp2 and fast_log2 are as much as one of these.
__device__ __forceinline__ bool is_near_zero(int64 sum, int cells) {
  const double alike = 1.5 / UNITS, random = 0.4 / UNITS + 2.5e-7;
  return fabs(double(sum)) < 1e6 * double(UNITS) * (alike * cells + random * sqrt(double(cells)));
}

// Any range. Which of two differences is less is told by the floats; where they are near each other, the integers'
// difference is exact, and may be less than 0 by what the floats are wrong.
struct LongWord {
  uint32 r;
  float f;  // in units of gamma ln 2
};

struct Long {
  typedef LongWord Word;
  static constexpr int LOW = 20;  // a cost is a high part times 2^LOW, and a low part
  static constexpr uint32 BIAS = MAGIC_BITS;
  static constexpr uint32 BASE = 0xC2200000u;                // -40: arguments of exponentials from -8 units on
  static constexpr float UNBASE = 1099511627776.0f;          // 2^40
  static constexpr float FAR = 1152921504606846976.0f;       // 2^60 units, of which the integer has nothing left
  static constexpr float WRAP = 4294967296.0f / UNITS;
  static constexpr float MOST_WRAPS = 32000.0f;

  float scale, high, units;
  uint32 bits = MAGIC_BITS;
  bool apart = false;

  __device__ __forceinline__ explicit Long(const Scale& s)
      : scale(s.scale), high(s.scale * (1.0f / (1 << LOW))), units(s.scale * (1.0f / UNITS)) {}

  struct Cost {
    uint32 h;
    float low, d;
  };
  __device__ __forceinline__ Cost cost(float d) const {
    const float t = fmaf(d, high, MAGIC);
    return {as_bits(t), fmaf(d, scale, fmaf(t, -float(1 << LOW), MAGIC + MAGIC * float(1 << LOW))), d};
  }
  __device__ __forceinline__ Word of(const Cost& q) const { return {(q.h << LOW) + as_bits(q.low), q.d * units}; }
  static __device__ __forceinline__ Word zero() { return {BIAS, 0.0f}; }
  static __device__ __forceinline__ Word far_below() { return {BIAS, -FAR}; }
  static __device__ __forceinline__ void put_far(Word& w) { w.f += FAR; }
  static __device__ __forceinline__ int64 integer(const Word& w) {
    const int r = int(w.r - BIAS);
    return int64(rint((double(w.f) * double(UNITS) - r) / 4294967296.0)) * 4294967296LL + r;
  }
  __device__ __forceinline__ Word from(const LongWord& w) { return w; }
  static __device__ __forceinline__ LongWord to(const Word& w) { return w; }

  static __device__ __forceinline__ float argument(uint32 x) { return as_float(uint32(int(x + HALF) >> OF_EXP2) + BASE); }

  // The cell of the words above and on the left, of which it makes its own. `low` is for Short.
  template <bool KEEP>
  __device__ __forceinline__ void cell(Word& v, Word& u, const Cost& q, bool real, uint32&, float& up, float& left) {
    const Word a = v, b = u;
    const bool is_up = a.f < b.f;
    const float lesser = fminf(a.f, b.f), fm = fminf(lesser, 0.0f), da = fm - a.f, db = fm - b.f;  // exact near 0
    const uint32 lo = is_up ? a.r : b.r, hi = is_up ? b.r : a.r;
    const bool below = lesser < 0.0f;
    const uint32 m = below ? lo : BIAS, middle = below ? BIAS : lo;
    const float e1 = fast_exp2(fminf(argument(middle - m), -fabs(lesser))), e2 = fast_exp2(fminf(argument(hi - m), fminf(da, db)));
    const float sum = fmaf(e2, UNBASE, fmaf(e1, UNBASE, 1.0f));
    if (KEEP) {
      const float r = reciprocal(sum), s = r * UNBASE, p1 = e1 * s, p2 = e2 * s, p = below ? r : p1;
      up = is_up ? p : p2;
      left = is_up ? p2 : p;
    }
    const float log = fast_log2(sum), rest = fmaf(q.d, units, -log);
    const uint32 t = as_bits(fmaf(log, -UNITS, q.low)), y = (q.h << LOW) + m;
    u = {without(y, a.r, t), rest + da};
    const Word next = {without(y, b.r, t), rest + db};
    if (real) v = next;
  }
  __device__ __forceinline__ void look(bool valid, uint32, uint32 all) {
    if (valid) bits |= all;
  }
  static __device__ __forceinline__ float modulo(uint32 r) { return float(int(r - BIAS)) * (1.0f / UNITS); }
  // How often the integer has wrapped, by the float.
  static __device__ __forceinline__ float wraps(const Word& w) { return rint((w.f - modulo(w.r)) * (1.0f / WRAP)); }
  static __device__ __forceinline__ Word word_of(uint32 r, float wraps) { return {r, fmaf(wraps, WRAP, modulo(r))}; }
  // At the end of a segment the float is what the integer says, so that its errors do not add up over more than that.
  static __device__ __forceinline__ Word settled(const Word& w) { return word_of(w.r, wraps(w)); }
  // Whether the float was near to that. What is far below anything marks the first row and column.
  __device__ __forceinline__ void compare(const Word& w) {
    apart |= !(fabs(settled(w).f - w.f) < 4.0f && fabs(wraps(w)) < MOST_WRAPS) && !(w.f < -0.5f * FAR);
  }
  // Infinite, NaN, or beyond 2^42: the high parts have another exponent.
  __device__ __forceinline__ bool has_failed() const { return apart || bits >> 23 != MAGIC_BITS >> 23; }
};

struct Short {
  typedef uint32 Word;
  static constexpr int LOW = 11;
  static constexpr uint32 Q = 1u << 29;  // costs are in [-Q, Q)
  static constexpr uint32 BIAS = MAGIC_BITS + Q;
  static constexpr uint32 BASE = 0xC2000000u;  // -32; plus 2^23 and more far too much, and harmless
  static constexpr float UNBASE = 4294967296.0f;
  static constexpr uint32 FAR = Q + (64u << FRACTION);
  // A difference as it is stored, biased. u, v <= q always, so only the lesser of a and b needs a bound: one that is less is
  // seen in the next cell, before a wrap, for a cell takes 2 Q and 2 units at most from it.
  static constexpr uint32 LEAST = 2 * Q + (4u << FRACTION);
  static constexpr float HIGH_MAGIC = MAGIC + float(Q >> LOW);
  static_assert(OF_EXP2 == 2, "what LEAST and the range of the costs are made for");

  // Two by a shuffle: so the compiler does not know BIAS, nor does it compute them anew in every step.
  float scale, high;
  uint32 lowest = 0xffffffffu, bits = MAGIC_BITS, bias;
  bool outside = false;

  __device__ __forceinline__ explicit Short(const Scale& s)
      : scale(s.scale), high(__shfl_sync(FULL_WARP, s.scale * (1.0f / (1 << LOW)), 0)), bias(__shfl_sync(FULL_WARP, BIAS, 0)) {}

  struct Cost {
    uint32 h;
    float low;
  };
  __device__ __forceinline__ Cost cost(float d) const {
    const float t = fmaf(d, high, HIGH_MAGIC);
    return {as_bits(t), fmaf(d, scale, fmaf(t, -float(1 << LOW), MAGIC + HIGH_MAGIC * float(1 << LOW)))};
  }
  __device__ __forceinline__ Word of(const Cost& q) const { return (q.h << LOW) + as_bits(q.low); }
  static __device__ __forceinline__ Word zero() { return BIAS; }
  static __device__ __forceinline__ Word far_below() { return BIAS - FAR; }
  static __device__ __forceinline__ void put_far(Word& w) { w += FAR; }
  static __device__ __forceinline__ int64 integer(Word w) { return int64(w) - int64(BIAS); }
  // Of a word that is set anew before it is used, whatever it is.
  __device__ __forceinline__ Word from(const LongWord& w) {
    outside |= !(w.f > -float((BIAS - LEAST) >> FRACTION) + 8.0f && w.f < float(Q >> FRACTION));
    return w.r - Long::BIAS + BIAS;
  }
  static __device__ __forceinline__ LongWord to(Word w) { return {w - BIAS + Long::BIAS, float(int(w - BIAS)) * (1.0f / UNITS)}; }

  static __device__ __forceinline__ float argument(uint32 x) { return as_float(((x + HALF) >> OF_EXP2) + BASE); }

  template <bool KEEP>
  __device__ __forceinline__ void cell(Word& v, Word& u, const Cost& q, bool real, uint32& low, float& up, float& left) {
    const Word a = v, b = u, lo = least(a, b), hi = most(a, b), m = least(lo, BIAS);
    low = least(low, lo);
    const float e1 = fast_exp2(as_float((absolute_difference(lo, bias, HALF) >> OF_EXP2) + BASE)), e2 = fast_exp2(argument(hi - m));
    const float sum = fmaf(e2, UNBASE, fmaf(e1, UNBASE, 1.0f));
    if (KEEP) {
      const float r = reciprocal(sum), s = r * UNBASE, p1 = e1 * s, p2 = e2 * s, p = lo < BIAS ? r : p1;
      const bool is_up = a < b;
      up = is_up ? p : p2;
      left = is_up ? p2 : p;
    }
    const uint32 t = as_bits(fmaf(fast_log2(sum), -UNITS, q.low)), y = shifted<LOW>(q.h, m);
    u = without(y, a, t);
    const Word next = without(y, b, t);
    if (real) v = next;
  }
  __device__ __forceinline__ void look(bool valid, uint32 low, uint32 all) {
    if (valid) {
      lowest = least(lowest, low);
      bits |= all;
    }
  }
  static __device__ __forceinline__ LongWord settled(const LongWord& w) { return w; }
  __device__ __forceinline__ void compare(const Word&) {}
  __device__ __forceinline__ bool has_failed() const {
    constexpr int RANGE = 30 - LOW;  // of a high part, in bits
    return outside || lowest < LEAST || bits >> RANGE != MAGIC_BITS >> RANGE;
  }
};
