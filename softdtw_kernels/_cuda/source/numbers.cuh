// Z = exp(-R / gamma) without overflow, the number that the recursion R = D + softmin(...) is computed in:
//
//     Z[i, j] = 2^(-D[i, j] log2(e) / gamma) * (Z[i-1, j-1] + Z[i-1, j] + Z[i, j-1])
//
// Z is held as mantissa * 2^(UNIT * exponent), a floating-point mantissa in [2^(-UNIT/2), 2^(UNIT/2)) and an integer
// exponent that counts in large units. No exponential and no logarithm of a cumulated number is ever taken: rounding is
// relative to local costs, whatever the length of the path.
//
// Two arithmetics share one interface:
//   Scaled<float>, Scaled<double>   exponents of 32 bits; says where they do not do. Second order takes that of double for
//                                   all costs: its differences of logarithms need more digits than there are in a float
//   Wide<Cost>                      slow; R itself to 159 bits and, for gamma = 0, the hard minimum
// Where Scaled<float> would do, a chunk of steps is tried in Narrow (narrow.cuh) first.
#pragma once
#include "portability.cuh"

constexpr double LARGEST_GAMMA = 1e28;  // as in _values.py

__device__ __forceinline__ bool is_gamma(double gamma) { return gamma >= 0 && gamma <= LARGEST_GAMMA; }  // NaN is not

// What can be wrong with an item; the bits are collected over all of its cells.
enum Status {
  FINE = 0,
  NOT_A_NUMBER = 1,  // NaN or -inf among the costs, or gamma, dummy or a length out of range: the item is NaN, whatever else
  OUT_OF_RANGE = 2,  // of the fast arithmetic: the item is left to Wide
  NO_PATH = 4,       // the value is +inf and the gradient 0
  // What is lost in the fast arithmetic: costs beyond WEIGHT_LIMIT, most often meant as masks, and numbers with exponents
  // below FAINT are taken for forbidden. That is exact if the result outweighs every path through such a cell. With
  // c = WEIGHT_LIMIT, the logarithm of such a path's weight is below -c plus what the other costs of the path add, at
  // most c / 4 unless LARGE_GAIN is set; a result above -c / 4 then is more than 2^(c / 2) times that.
  MASKED = 8,
  LARGE_GAIN = 16,
  LAST_STATUS = 16,
  DEEP = 16 * LAST_STATUS,  // the first of DEPTHS bits, see depth_of
};
constexpr int DEPTHS = 5;

__device__ __forceinline__ bool is_left_to_wide(int status) {
  return (status & (OUT_OF_RANGE | NOT_A_NUMBER)) == OUT_OF_RANGE;
}

// Exponents of the fast arithmetic, in units. Zero has NOTHING, or up to 2^29 more: it drifts where costs are negative.
// Between two looks at the numbers that a lane goes on with, a chunk of steps apart, none gets from above FAINT to the
// exponents of zero unseen: at most 128 weights of up to CAREFUL_WEIGHT come in between.
constexpr int NOTHING = -(1 << 30), FAINT = -(1 << 28);
// Of |D| log2(e) / gamma. Up to FAST_WEIGHT its integer part and its fraction come cheaply; beyond CAREFUL_WEIGHT what is
// lost goes unnoticed; beyond WEIGHT_LIMIT it counts as infinite.
constexpr int NARROW_WEIGHT = 128, FAST_WEIGHT = 1 << 21, CAREFUL_WEIGHT = 1 << 27, WEIGHT_LIMIT = 1 << 30;
constexpr double LOG2_E = 1.4426950408889634074;
constexpr double LARGEST_RATE = 1e300;  // of 1 / gamma where it multiplies what may be 0
constexpr double LN_2 = 0.69314718055994530942;

// 2^x for |x| <= 0.5: polynomials fitted at Chebyshev nodes, errors 2e-9 and 3e-18.
// A polynomial rather than the GPU's ex2.approx, so that the emulator computes what the GPU computes.
template <int TIMES_TWO = 2>  // halves of 2^x where 1
__device__ __forceinline__ float exp2_of_fraction(float x) {
  constexpr float k = TIMES_TWO * 0.5f;
  float y = k * 1.546144469856910e-4f;
  y = fmaf(y, x, k * 1.340042817761584e-3f);
  y = fmaf(y, x, k * 9.618056678524639e-3f);
  y = fmaf(y, x, k * 5.550327226671303e-2f);
  y = fmaf(y, x, k * 2.402265092228876e-1f);
  y = fmaf(y, x, k * 6.931472067028326e-1f);
  return fmaf(y, x, k);
}

template <int TIMES_TWO = 2>
__device__ __forceinline__ double exp2_of_fraction(double x) {
  constexpr double k = TIMES_TWO * 0.5;
  double y = k * 4.45581790833606449298e-10;
  y = fma(y, x, k * 7.074194297288521005559e-9);
  y = fma(y, x, k * 1.017805708773394110462e-7);
  y = fma(y, x, k * 1.321543253591237616649e-6);
  y = fma(y, x, k * 1.525273384155677258925e-5);
  y = fma(y, x, k * 1.54035304637243542086e-4);
  y = fma(y, x, k * 1.333355814640647069706e-3);
  y = fma(y, x, k * 9.618129107587256668065e-3);
  y = fma(y, x, k * 5.550410866482162703949e-2);
  y = fma(y, x, k * 2.402265069591015956717e-1);
  y = fma(y, x, k * 6.931471805599453092537e-1);
  return fma(y, x, k);
}

// log2 of a positive number, through the logarithm of its mantissa: used once per value.
__device__ __forceinline__ double log2_of(double x) { return log2(x); }

// The parts of a floating-point number. `aligning(d)` is 2 * 2^(UNIT * d) for d <= 0, and 0 where a term would be less
// than 2^-64 of the largest.
template <typename T>
struct Bits;

template <>
struct Bits<float> {
  static constexpr int UNIT = 64, LOG_UNIT = 6;
  static constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  static __device__ __forceinline__ int integer_of(float rounded) { return __float_as_int(rounded) - 0x4b400000; }
  static __device__ __forceinline__ float aligning(int d) { return __int_as_float((max(d, -2) << 29) + (2 << 29)); }
  static __device__ __forceinline__ float times_power(float x, int n) { return __int_as_float(__float_as_int(x) + (n << 23)); }
  static __device__ __forceinline__ int units(float x) { return (__float_as_int(x) - ((127 - 32) << 23)) >> 29; }
  static __device__ __forceinline__ float without(float x, int units) { return __int_as_float(__float_as_int(x) - (units << 29)); }
  static __device__ __forceinline__ bool has_sign(float x) { return __float_as_int(x) < 0; }
  static __device__ __forceinline__ float round(float x) { return rintf(x); }
  static __device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
};

template <>
struct Bits<double> {
  static constexpr int UNIT = 512, LOG_UNIT = 9;
  static constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52
  static __device__ __forceinline__ int integer_of(double rounded) { return int(__double_as_longlong(rounded)); }
  static __device__ __forceinline__ double aligning(int d) { return __longlong_as_double(int64(max(d, -2) + 2) << 61); }
  static __device__ __forceinline__ double times_power(double x, int n) {
    return __longlong_as_double(__double_as_longlong(x) + (int64(n) << 52));
  }
  static __device__ __forceinline__ int units(double x) {
    return int((__double_as_longlong(x) - (int64(1023 - 256) << 52)) >> 61);
  }
  static __device__ __forceinline__ double without(double x, int units) {
    return __longlong_as_double(__double_as_longlong(x) - (int64(units) << 61));
  }
  static __device__ __forceinline__ bool has_sign(double x) { return __double_as_longlong(x) < 0; }
  static __device__ __forceinline__ double round(double x) { return rint(x); }
  static __device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }
};

// Whether what is lost to rounding may be more than 1e-6 or 1e-12 of R / gamma, here in units of ln 2: a value small
// against gamma, as of a single path of small costs, or where costs and the number of paths cancel. Some of that is random
// from cell to cell, some not: the weights of equal costs are rounded alike, by up to 1.2e-7 or 2.2e-16 of R / gamma in all.
template <typename T>
__device__ __forceinline__ bool is_near_zero(double log2_z, int cells) {
  const double alike = sizeof(T) == 4 ? 0.17 : 3.2e-4, random = sizeof(T) == 4 ? 0.25 : 3.2e-4;
  return fabs(log2_z) < alike * cells + random * sqrt(double(cells));
}

// A cost of warping, w for every step that repeats a frame. The fast arithmetic is given costs to which the host has added
// 2 w, and takes (n + m) w off the value; Wide is given both as they are. To the value these roundings matter where it is
// small beside what it is the difference of, and to the gradient where they are not small beside gamma.
//
// How far costs with their 2 w go below 0, at most, in units of log2: 16^k, for the bits of the status that say so.
__device__ __forceinline__ int bits_of_depth(double depth) {
  int bits = 0;
  for (int k = 0; k < DEPTHS; ++k)
    if (depth > double(1 << (4 * k + 4))) bits = DEEP << k;
  return bits;
}
__device__ __forceinline__ double depth_of(int status) {
  double depth = 16;
  for (int k = 0; k < DEPTHS; ++k)
    if (status & (DEEP << k)) depth = double(1 << (4 * k + 8));
  return depth;
}

// Whether a value of costs with 2 w in them is too small for its roundings, (n + m) w being taken off; costs of a path add up
// to so much, but for those below 0 twice. `skipped`: what the prices of frames left out add up to, at most.
__device__ __forceinline__ bool is_near_zero_of_warped(double value, double before, double gamma, int cells, double depth,
                                                       double skipped, bool single) {
  const double rounding = 1.2e-16, unit = cells * LN_2 * gamma;
  const double sizes = 5 * fabs(before) + fabs(before - value) + 8 * skipped + unit * (6 + 2 * depth);
  return fabs(value) * (single ? 1e-6 : 1e-12) < rounding * sizes;
}

// log(p), 0 where p is 0; others: what it lacks to 1, beside which a small one would be rounded away.
template <typename T>
__device__ __forceinline__ T log_of_share(T p, T others) {
  return p > T(0.5) ? log1p(-others) : p > T(0) ? log(p) : T(0);
}

// The entropy of the steps up and left, and of the diagonal one, which has what they leave to 1. The largest of the three is
// what the others leave, so that it has their digits.
template <typename T>
__device__ __forceinline__ T entropy_of_shares(T up, T left) {
  const T diagonal = max((T(1) - up) - left, T(0)), low = min(up, left), high = max(up, left);
  const T least = min(low, diagonal), second = max(low, min(high, diagonal)), others = least + second;
  T sum = (T(1) - others) * log1p(-others);
  if (least > T(0)) sum += least * log(least);
  if (second > T(0)) sum += second * log(second);
  return -sum;
}

// The probabilities of having come from each predecessor. Of no meaning where Z is 0: nothing visits such a cell.
template <typename T>
struct Transition {
  T diagonal, up, left;
};

template <typename T, typename C = T>
struct Scaled {
  using Real = T;  // of the probabilities and of the expected visits
  using Cost = C;
  using B = Bits<T>;
  static constexpr int UNIT = B::UNIT;
  static constexpr bool HAS_SHORTCUT = true;  // weight() does most costs, careful_weight() all

  struct alignas(2 * sizeof(T)) Number {
    T mantissa;
    int exponent;
  };

  struct Weight {  // 2^(-D log2(e) / gamma) / 2 = factor * 2^(UNIT * exponent): sums of aligned terms are doubled
    T factor;
    int exponent;
  };

  T scale, scale_rest;  // -log2(e) / gamma as a sum of two
  T fast_limit;         // of |cost|
  T lowest;             // of the costs; those that Narrow takes unseen are above -NARROW_WEIGHT * gamma / log2(e)
  bool is_warped = false;  // costs have come by a cost of warping, and beyond fast_limit have lost digits that count

  // Returns the status that gamma alone causes.
  __device__ __forceinline__ int start(double gamma) {
    if (!is_gamma(gamma)) return NOT_A_NUMBER;
    double c = -LOG2_E / fabs(gamma);  // -0.0 is 0 too
    scale = T(c);
    scale_rest = sizeof(T) == 4 ? T(c - double(scale)) : T(fma(-c, gamma, -LOG2_E) / gamma);
    fast_limit = T(min(FAST_WEIGHT / fabs(c), 1e38));
    lowest = T(-min(NARROW_WEIGHT / fabs(c), 1e38));
    // Gamma 0 or so small that the scale overflows needs the other arithmetic.
    return c > -1e30 ? FINE : OUT_OF_RANGE;
  }

  // Costs of float64 that have 2 w in them, w not 0. `single`: which were float32 before, and so is the result. Of the costs of
  // a path these roundings are not all of one sign, or change the weights of all paths alike.
  __device__ __forceinline__ void start_warped(double, double gamma, int cells, bool single) {
    if constexpr (sizeof(C) == 8) {
      is_warped = true;
      fast_limit = min(fast_limit, T((single ? 4.5e9 : 4.5e6) * gamma / sqrt(double(cells))));
      lowest = 0;
    }
  }

  static __device__ __forceinline__ Number zero() { return {T(1), NOTHING}; }
  static __device__ __forceinline__ Number one() { return {T(1), 0}; }
  static __device__ __forceinline__ bool is_zero(const Number& z) { return z.exponent < FAINT; }

  static __device__ __forceinline__ Weight weight_of(T fraction, int whole) {
    return {B::times_power(exp2_of_fraction<1>(fraction), whole & (UNIT - 1)), whole >> B::LOG_UNIT};
  }

  // Without branches. `beyond`: a cost other than +inf is beyond FAST_WEIGHT, or NaN, and the weight of no meaning.
  __device__ __forceinline__ Weight weight(T cost, bool& beyond) {
    const bool large = !(fabs(cost) <= fast_limit);
    beyond |= large && cost != infinity<T>();
    const T c = min(cost, fast_limit);
    lowest = min(lowest, c);
    // The product c * (scale + scale_rest): its integer part may be large, its fraction stays right.
    const T rounded = B::multiply_add(c, scale, B::ROUNDER);
    const T fraction = B::multiply_add(c, scale_rest, B::multiply_add(c, scale, -(rounded - B::ROUNDER)));
    Weight w = weight_of(fraction, B::integer_of(rounded));
    if (large) w.exponent = NOTHING;
    return w;
  }

  __device__ __forceinline__ Weight careful_weight(T cost, int& status) {
    const T product = cost * scale;
    if (cost != cost) status |= NOT_A_NUMBER;
    else if (product > T(CAREFUL_WEIGHT)) status |= OUT_OF_RANGE;  // -inf too, which Wide knows at gamma = 0
    else if (product < T(-CAREFUL_WEIGHT) && cost != infinity<T>()) status |= MASKED;
    else if (sizeof(C) == 8 && is_warped && fabs(cost) > fast_limit && cost != infinity<T>()) status |= OUT_OF_RANGE;
    if (!(product >= T(-WEIGHT_LIMIT) && product <= T(CAREFUL_WEIGHT))) return {T(0.5), NOTHING};
    lowest = min(lowest, cost);
    const T whole = B::round(product);
    const T rest = B::multiply_add(cost, scale_rest, B::multiply_add(cost, scale, -whole)), more = B::round(rest);
    return weight_of(rest - more, int(whole) + int(more));
  }

  // Where no path comes.
  static __device__ __forceinline__ int status_of(T cost) {
    return cost != cost ? NOT_A_NUMBER : cost == -infinity<T>() ? OUT_OF_RANGE : FINE;
  }

  static __device__ __forceinline__ T aligned(const Number& z, int exponent) {
    return z.mantissa * B::aligning(z.exponent - exponent);
  }

  __device__ __forceinline__ Number combine(const Number& diagonal, const Number& up, const Number& left,
                                            const Weight& weight, Transition<T>& p, bool with_transition) {
    const int exponent = max(max(diagonal.exponent, up.exponent), left.exponent);
    const T d = aligned(diagonal, exponent), u = aligned(up, exponent), l = aligned(left, exponent);
    const T sum = (d + u) + l;
    if (with_transition) {
      const T inverse = reciprocal(sum);
      // With the reciprocal's own error put back, x / x is 1. Without, visits would be lost along a straight path: the
      // rounding of x * (1 / x) is never upward.
      const T rest = inverse * B::multiply_add(-sum, inverse, T(1));
      p.up = B::multiply_add(u, inverse, u * rest);
      p.left = B::multiply_add(l, inverse, l * rest);
      p.diagonal = B::multiply_add(d, inverse, d * rest);
    }
    const T z = sum * weight.factor;
    const int units = B::units(z);
    return {B::without(z, units), max(exponent + weight.exponent + units, NOTHING)};
  }

  // After every chunk of steps, at the numbers that go on.
  static __device__ __forceinline__ int look(const Number& z) {
    return unsigned(z.exponent - (NOTHING - FAINT)) < unsigned(2 * FAINT - NOTHING) ? MASKED : FINE;
  }

  // After a sweep over paths of at most `cells` cells.
  __device__ __forceinline__ int final_status(int cells) const {
    const double gain = double(lowest) * double(scale) * cells;
    const int status = (gain > -2.0 * FAINT * UNIT ? OUT_OF_RANGE : FINE) | (gain > WEIGHT_LIMIT / 4 ? LARGE_GAIN : FINE);
    if constexpr (sizeof(C) == 8)
      if (is_warped) return status | bits_of_depth(double(lowest) * double(scale));
    return status;
  }

  static __device__ __forceinline__ double log2_of_number(const Number& z) {
    return log2_of(double(z.mantissa)) + double(UNIT) * z.exponent;
  }

  // Whether Z of the end leaves it open what the masked cells add. `status` is that of the whole item.
  static __device__ __forceinline__ bool masks_matter(const Number& z, int status) {
    return status & MASKED && (status & LARGE_GAIN || log2_of_number(z) < -WEIGHT_LIMIT / 4);
  }

  static __device__ __forceinline__ bool is_imprecise(const Number& z, int cells) {
    return !is_zero(z) && is_near_zero<T>(log2_of_number(z), cells);
  }

  // R = -gamma log Z
  __device__ __forceinline__ double value(const Number& z, double gamma, int) const { return -log2_of_number(z) * LN_2 * gamma; }
};

// An unevaluated sum of three float64, about 159 bits: small costs are not lost beside masks of 1e30.
struct Triple {
  double high, middle, low;

  static __device__ __forceinline__ double two_sum(double a, double b, double& error) {
    double sum = a + b, rest = sum - a;
    error = (a - (sum - rest)) + (b - rest);
    return sum;
  }

  __device__ __forceinline__ Triple plus(double x) const {
    double error, more;
    double a = two_sum(high, x, error), b = two_sum(middle, error, more), c = low + more;
    if (!(fabs(a) < infinity<double>())) return {a, 0.0, 0.0};
    b = two_sum(b, c, c);
    a = two_sum(a, b, b);
    b = two_sum(b, c, c);
    return {a, b, c};
  }

  // this - other of finite ones, rounded once
  __device__ __forceinline__ double minus(const Triple& other) const {
    double e, f, g;
    double a = two_sum(high, -other.high, e), b = two_sum(middle, -other.middle, f);
    a = two_sum(a, b, g);
    return a + (g + (e + (f + (low - other.low))));
  }
};

// R itself, as a sum of three floats, by the recursion that the slow tier of the CPU uses: any costs, gamma = 0, and values
// near 0. Beside a path that costs next to nothing the others may add less to Z than its rounding, and yet much to R.
template <typename C>
struct Wide {
  using Real = double;
  using Cost = C;
  static constexpr bool HAS_SHORTCUT = false;

  struct alignas(16) Number : Triple {};

  struct Weight {
    double cost;  // +inf where forbidden
  };

  double gamma;
  double warp = 0;  // the cost of a step that repeats a frame

  __device__ __forceinline__ int start(double gamma_of_item) {
    gamma = gamma_of_item;
    return is_gamma(gamma) ? FINE : NOT_A_NUMBER;
  }
  __device__ __forceinline__ void start_warped(double warp_of_item, double, int, bool) { warp = warp_of_item; }

  static __device__ __forceinline__ Number number_of(const Triple& r) { return {{r.high, r.middle, r.low}}; }
  static __device__ __forceinline__ Number zero() { return number_of({infinity<double>(), 0.0, 0.0}); }
  static __device__ __forceinline__ Number one() { return number_of({0.0, 0.0, 0.0}); }
  static __device__ __forceinline__ bool is_zero(const Number& z) { return z.high == infinity<double>(); }

  __device__ __forceinline__ Weight careful_weight(double cost, int& status) const { return weight(cost, status); }
  __device__ __forceinline__ Weight weight(double cost, int& status) const {
    status |= status_of(cost);
    return {cost < infinity<double>() ? cost : infinity<double>()};
  }
  // A cost of -inf is one like others where there is a least one.
  __device__ __forceinline__ int status_of(double cost) const {
    return cost != cost || (cost == -infinity<double>() && gamma > 0) ? NOT_A_NUMBER : FINE;
  }

  // Of equal predecessors the diagonal one, then the one above. Not all three are zero.
  static __device__ __forceinline__ Number minimum(const Number& diagonal, const Number& up, const Number& left,
                                                   Transition<double>& p) {
    Number least = diagonal;
    p = {1.0, 0.0, 0.0};
    if (is_less(up, least)) {
      least = up;
      p = {0.0, 1.0, 0.0};
    }
    if (is_less(left, least)) {
      least = left;
      p = {0.0, 0.0, 1.0};
    }
    return least;
  }

  static __device__ __forceinline__ bool is_less(const Number& z, const Number& least) {
    if (!(fabs(z.high) < infinity<double>() && fabs(least.high) < infinity<double>())) return z.high < least.high;
    return z.minus(least) < 0;
  }

  // exp((least - R) / gamma)
  __device__ __forceinline__ double share(const Number& z, const Number& least) const {
    return is_zero(z) ? 0.0 : exp(-z.minus(least) / gamma);
  }

  __device__ __forceinline__ Number combine(const Number& diagonal, const Number& over, const Number& beside, const Weight& weight,
                                            Transition<double>& p, bool) const {
    Number up = over, left = beside;
    if (warp != 0) {
      up = number_of(over.plus(warp));
      left = number_of(beside.plus(warp));
    }
    Transition<double> chosen;
    p = {0.0, 0.0, 0.0};
    if (weight.cost == infinity<double>() || (is_zero(diagonal) && is_zero(up) && is_zero(left))) return zero();
    const Number least = minimum(diagonal, up, left, chosen);
    if (gamma == 0) {
      p = chosen;
      return number_of(least.plus(weight.cost));
    }
    p = {share(diagonal, least), share(up, least), share(left, least)};
    // The sum but for the least one's share, which is 1: beside it the others may be far below rounding.
    const double others = chosen.diagonal > 0 ? p.up + p.left : p.diagonal + (chosen.up > 0 ? p.left : p.up);
    const double sum = 1.0 + others;
    p = {p.diagonal / sum, p.up / sum, p.left / sum};
    return number_of(least.plus(-gamma * log1p(others)).plus(weight.cost));
  }

  static __device__ __forceinline__ int look(const Number&) { return FINE; }
  static __device__ __forceinline__ int final_status(int) { return FINE; }
  static __device__ __forceinline__ bool masks_matter(const Number&, int) { return false; }
  static __device__ __forceinline__ bool is_imprecise(const Number&, int) { return false; }
  static __device__ __forceinline__ bool is_endless(const Number& z) { return z.high == -infinity<double>(); }
  static __device__ __forceinline__ double value(const Number& z, double, int) { return z.high + (z.middle + z.low); }
};
