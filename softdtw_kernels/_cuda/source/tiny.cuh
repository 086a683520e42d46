// Three arithmetics for lattices small enough that one thread does a whole one (tiny.cu), all of Z = exp(-R / gamma) as
// in numbers.cuh, but with exponents that count single powers of 2, or with none: exponents are small, and to shift
// a mantissa by any amount costs no more here than by a large unit.
//
// The weak lattice is taken four cells at a time. Macro-cell (i, j) holds, of lattice rows 2i and 2i + 1 and columns
// 2j and 2j + 1, the dummy cells A, B (right of A) and C (below A), and the real cell M (below B):
//
//     A = t (M'diagonal + B'left + C'up)    B = t (A + M'up + C'up)    C = t (A + M'left + B'left)
//     M = w (A + B + C)                     t, w: exp(-cost / gamma) of a dummy cell and of the real cell
//
// A successor sees of it B and M (from the right), C and M (from below) or M alone (from below on the right). Reversed,
// the weak lattice is a weak lattice again, and so is the plain one: one `combine` does both sweeps.
//
//   General<T>   an exponent for every number. |cost| / gamma up to EXPONENT_LIMIT.
//   Compact<T>   of the weak lattice only: one exponent for the macro-cell, none for the weights of costs. Half the
//                instructions; `failed` says that numbers were too far apart for that.
//   Level<T>     no exponents, but a fixed power of 2 for every step. A fifth; for costs that vary less.
//
// The file is long since the three stand side by side: each is the others' rule with fewer exponents.
#pragma once
#include "lattices.cuh"

template <typename T>
struct TinyBits;

template <>
struct TinyBits<float> {
  static constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: a sum with it is an integer, in the low bits
  static constexpr float COMPACT_LIMIT = 36.0f;  // of |cost| log2(e) / gamma: the weight of a smoothed cost is a float
  static constexpr int COMPACT_DUMMY_LIMIT = 20;
  static constexpr int COMPACT_SPAN = 90;        // of the numbers of a macro-cell, as a power of 2
  static constexpr int COMPACT_SLACK = 32;       // see Compact::has_failed
  static constexpr int COMPACT_LIGHTEST = 16;
  static constexpr int LARGEST_POWER = 126;
  static constexpr int LEVEL_START = 60;    // see Level
  static constexpr int LEVEL_SPAN = 96;
  static constexpr int LEVEL_SPAN_LEADING = 72;
  static constexpr int LEVEL_SLACK = 16;
  static constexpr int LEVEL_COST = 60;     // of |cost| log2(e) / gamma
  static constexpr int LEVEL_WEIGHT = 118;  // of the logarithm of a weight
  static constexpr int LEVEL_STEP = 50;     // of that of a step
  static constexpr int LEVEL_MARGIN = 26;   // of that of the inverse of Z
  static __device__ __forceinline__ float less(float x, float y) {  // of numbers >= 0; three in one instruction
    return __int_as_float(min(__float_as_int(x), __float_as_int(y)));
  }
  static __device__ __forceinline__ int integer(float rounded) { return __float_as_int(rounded) - 0x4b400000; }
  // 2^n for n <= LARGEST_POWER; 0 where that is below the smallest normal number
  static __device__ __forceinline__ float power(int n) { return __int_as_float(max(n + 127, 0) << 23); }
  // x * 2^n where both it and x are normal; `rounded` is ROUNDER + n
  static __device__ __forceinline__ float shift(float x, float rounded) {
    return __int_as_float(__float_as_int(x) + (__float_as_int(rounded) << 23));
  }
  // Of x > 0, the exponent and the mantissa in [1, 2), for 0 they are -127 and 1
  static __device__ __forceinline__ int exponent(float x) { return (__float_as_int(x) >> 23) - 127; }
  static __device__ __forceinline__ float mantissa(float x) {
    return __int_as_float((__float_as_int(x) & 0x7fffff) | 0x3f800000);
  }
  // 2^-exponent(x) of a normal x > 0
  static __device__ __forceinline__ float inverse_power(float x) {
    return __int_as_float(0x7f000000 - (__float_as_int(x) & 0x7f800000));
  }
};

template <>
struct TinyBits<double> {
  static constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double COMPACT_LIMIT = 300.0;
  static constexpr int COMPACT_DUMMY_LIMIT = 100;
  static constexpr int COMPACT_SPAN = 800;
  static constexpr int COMPACT_SLACK = 320;
  static constexpr int COMPACT_LIGHTEST = 100;
  static constexpr int LARGEST_POWER = 1022;
  static constexpr int LEVEL_START = 480;
  static constexpr int LEVEL_SPAN = 950;
  static constexpr int LEVEL_SPAN_LEADING = 800;
  static constexpr int LEVEL_SLACK = 100;
  static constexpr int LEVEL_COST = 480;
  static constexpr int LEVEL_WEIGHT = 1000;
  static constexpr int LEVEL_STEP = 400;
  static constexpr int LEVEL_MARGIN = 70;
  static __device__ __forceinline__ double less(double x, double y) { return min(x, y); }
  static __device__ __forceinline__ int integer(double rounded) { return int(__double_as_longlong(rounded)); }
  static __device__ __forceinline__ double power(int n) {
    return __longlong_as_double(int64(max(n + 1023, 0)) << 52);
  }
  static __device__ __forceinline__ double shift(double x, double rounded) {
    return __longlong_as_double(__double_as_longlong(x) + (__double_as_longlong(rounded) << 52));
  }
  static __device__ __forceinline__ int exponent(double x) { return int(__double_as_longlong(x) >> 52) - 1023; }
  static __device__ __forceinline__ double mantissa(double x) {
    return __longlong_as_double((__double_as_longlong(x) & 0xfffffffffffffLL) | 0x3ff0000000000000LL);
  }
  static __device__ __forceinline__ double inverse_power(double x) {
    return __longlong_as_double(0x7fe0000000000000LL - (__double_as_longlong(x) & 0x7ff0000000000000LL));
  }
};

// mantissa * 2^exponent; zero has an exponent below all others, so that it does not move the others in a sum.
template <typename T>
struct Tiny {
  T mantissa;
  int exponent;
};

// Sums of a few ZEROs stay within 32 bits, and paths of up to 65 cells of EXPONENT_LIMIT above ZERO.
constexpr int TINY_ZERO = -(1 << 28);
constexpr int TINY_EXPONENT_LIMIT = 1 << 20;  // of |cost| log2(e) / gamma

// log2(e) / gamma as a sum of two, and what both arithmetics do with it.
template <typename T>
struct Rate {
  T scale, rest;
  __device__ __forceinline__ Rate(double gamma) {
    double c = LOG2_E / gamma;
    scale = T(c);
    rest = sizeof(T) == 4 ? T(c - double(scale)) : T(fma(-c, gamma, LOG2_E) / gamma);
  }

  static __device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
  static __device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

  // 2^(-cost * (scale + rest)) = result * 2^whole; `rounded` holds whole as an integer in its low bits.
  __device__ __forceinline__ T weight(T cost, T& whole, T& rounded) const {
    rounded = multiply_add(-cost, scale, TinyBits<T>::ROUNDER);
    whole = rounded - TinyBits<T>::ROUNDER;
    T fraction = multiply_add(-cost, scale, -whole);
    return exp2_of_fraction(multiply_add(-cost, rest, fraction));
  }
};

// What successors see of a cell, or of a macro-cell of the weak lattice.
template <class Number, bool WEAK>
struct Cells;
template <class Number>
struct Cells<Number, false> {
  Number m;
};
template <class Number>
struct Cells<Number, true> {
  Number b, c, m;
};

template <typename T, bool WEAK>
struct General {
  using B = TinyBits<T>;
  using Number = Tiny<T>;
  using R = Rate<T>;
  using Weight = Number;  // of a cost or a smoothed cost
  using Node = Cells<Number, WEAK>;

  R rate;
  Weight dummy;
  bool beyond = false;  // some cost is not finite or beyond EXPONENT_LIMIT, and was taken for a forbidden cell

  __device__ __forceinline__ General(const R& rate, T dummy_cost, double origin_count) : rate(rate), dummy(zero()) {
    if (WEAK) dummy = weight(dummy_cost);
  }

  static __device__ __forceinline__ Number zero() { return {T(0), TINY_ZERO}; }
  static __device__ __forceinline__ Number one() { return {T(1), 0}; }
  static __device__ __forceinline__ Node nothing() {
    Node node;
    node.m = zero();
    if constexpr (WEAK) node.b = node.c = zero();
    return node;
  }
  static __device__ __forceinline__ Node start() {  // before the first cell
    Node node = nothing();
    node.m = one();
    return node;
  }
  static __device__ __forceinline__ Weight nothing_weighs() { return zero(); }
  static __device__ __forceinline__ Weight weight_of(double x) { return {T(x), 0}; }

  __device__ __forceinline__ Weight weight(T cost) {
    T whole, rounded, factor = rate.weight(cost, whole, rounded);
    bool usual = fabs(whole) <= T(TINY_EXPONENT_LIMIT);  // false for NaN
    if (!usual) beyond = true;
    return {usual ? factor : T(0), usual ? B::integer(rounded) : TINY_ZERO};
  }

  // Not normalized: up to 12.
  static __device__ __forceinline__ Number add(const Number& x, const Number& y, const Number& z) {
    int exponent = max(max(x.exponent, y.exponent), z.exponent);
    T sum = x.mantissa * B::power(x.exponent - exponent);
    sum = R::multiply_add(y.mantissa, B::power(y.exponent - exponent), sum);
    sum = R::multiply_add(z.mantissa, B::power(z.exponent - exponent), sum);
    return {sum, exponent};
  }

  static __device__ __forceinline__ Number multiply(const Number& x, const Number& y) {
    T product = x.mantissa * y.mantissa;
    bool some = product > T(0);
    int exponent = x.exponent + y.exponent + B::exponent(product);
    return {some ? B::mantissa(product) : T(0), some ? exponent : TINY_ZERO};
  }

  static __device__ __forceinline__ Weight smoothed(const Weight& raw, const Weight& before) {
    return {raw.mantissa * before.mantissa, raw.exponent + before.exponent};
  }

  // A cell from its predecessors; `sum` is what its real cell gets from them, before its own weight.
  __device__ __forceinline__ Node combine(const Node& diagonal, const Node& up, const Node& left, const Weight& weight,
                                          Number& sum, Number* corner = nullptr) {
    Node node;
    if constexpr (WEAK) {
      Number a = multiply(add(diagonal.m, up.c, left.b), dummy);
      node.b = multiply(add(a, up.m, up.c), dummy);
      node.c = multiply(add(a, left.m, left.b), dummy);
      sum = add(a, node.b, node.c);
      if (corner) *corner = a;
    } else {
      sum = add(diagonal.m, up.m, left.m);
    }
    node.m = multiply(sum, weight);
    return node;
  }

  static __device__ __forceinline__ Number real(const Node& node) { return node.m; }

  // alpha * beta / Z
  __device__ __forceinline__ T visits(const Number& forward, const Number& backward, const Number& end, T inverse) {
    return forward.mantissa * backward.mantissa * inverse *
           B::power(forward.exponent + backward.exponent - end.exponent);
  }

  __device__ __forceinline__ void note(const Weight& weight) {}  // of every real cell
  __device__ __forceinline__ bool has_failed() const { return false; }

  // What a smoothed cell sends to the raw costs of its predecessors, for each unit of their weight.
  using Flow = Number;
  static __device__ __forceinline__ Flow no_flow() { return {T(0), -TINY_ZERO}; }
  static __device__ __forceinline__ Flow flow(T visits, const Weight& before) {
    // The largest term of a sum that is not 0 is above 0.7.
    return {visits * reciprocal(max(before.mantissa, T(0.5))), before.exponent};
  }
  static __device__ __forceinline__ T shares(const Weight& raw, const Flow& x, const Flow& y, const Flow& z) {
    T sum = x.mantissa * B::power(raw.exponent - x.exponent);
    sum = R::multiply_add(y.mantissa, B::power(raw.exponent - y.exponent), sum);
    sum = R::multiply_add(z.mantissa, B::power(raw.exponent - z.exponent), sum);
    return raw.mantissa * sum;
  }
};

template <typename T, int COLUMNS>
struct Compact {
  using B = TinyBits<T>;
  using Number = Tiny<T>;
  using R = Rate<T>;
  using Weight = T;

  struct Node {
    T b, c, m;
    int exponent;
  };

  R rate;
  T dummy;
  T least = T(1);       // of the dummy cells, each against the largest number of its macro-cell
  T lightest = T(1);    // of the weights of real cells
  bool failed = false;  // the result is worth nothing
  static constexpr bool beyond = false;

  __device__ __forceinline__ Compact(const R& rate, T dummy_cost, double origin_count) : rate(rate) {
    T whole, rounded, factor = rate.weight(dummy_cost, whole, rounded);
    failed = !(fabs(whole) <= T(B::COMPACT_DUMMY_LIMIT)) || !(origin_count < 1 << 8 && origin_count * (1 << 8) > 1);
    dummy = B::shift(factor, rounded);
  }

  static __device__ __forceinline__ Number one() { return {T(1), 0}; }
  static __device__ __forceinline__ Node nothing() { return {T(0), T(0), T(0), TINY_ZERO}; }
  static __device__ __forceinline__ Node start() { return {T(0), T(0), T(1), 0}; }
  static __device__ __forceinline__ Weight nothing_weighs() { return T(0); }
  static __device__ __forceinline__ Weight weight_of(double x) { return T(x); }

  __device__ __forceinline__ Weight weight(T cost) {
    T whole, rounded, factor = rate.weight(cost, whole, rounded);
    if (!(fabs(whole) <= B::COMPACT_LIMIT)) failed = true;
    return B::shift(factor, rounded);
  }

  static __device__ __forceinline__ Weight add(Weight x, Weight y, Weight z) { return x + y + z; }
  static __device__ __forceinline__ Weight smoothed(Weight raw, Weight before) { return raw * before; }

  __device__ __forceinline__ Node combine(const Node& diagonal, const Node& up, const Node& left, Weight weight,
                                          Number& sum, Number* corner = nullptr) {
    const int exponent = max(max(diagonal.exponent, up.exponent), left.exponent);
    const T of_up = B::power(up.exponent - exponent), of_left = B::power(left.exponent - exponent);
    const T up_c = up.c * of_up, left_b = left.b * of_left;
    const T a = dummy * (R::multiply_add(diagonal.m, B::power(diagonal.exponent - exponent), left_b) + up_c);
    T b = dummy * (a + R::multiply_add(up.m, of_up, up_c));
    T c = dummy * (a + R::multiply_add(left.m, of_left, left_b));
    sum = {a + b + c, exponent};
    const T m = sum.mantissa * weight, largest = sum.mantissa + m, inverse = B::inverse_power(largest);
    b *= inverse;
    c *= inverse;
    least = min(least, min(b, c));
    if (corner) {
      *corner = {a * inverse, exponent + B::exponent(largest)};
      least = min(least, a * inverse);
    }
    return {b, c, m * inverse, exponent + B::exponent(largest)};
  }

  static __device__ __forceinline__ Number real(const Node& node) { return {node.m, node.exponent}; }

  __device__ __forceinline__ T visits(const Number& forward, const Number& backward, const Number& end, T inverse) {
    int exponent = forward.exponent + backward.exponent - end.exponent;
    if (exponent > B::LARGEST_POWER) failed = true;
    return forward.mantissa * backward.mantissa * inverse * B::power(exponent);
  }

  __device__ __forceinline__ void note(Weight weight) { lightest = min(lightest, weight); }

  // Numbers below 2^-LARGEST_POWER of their neighbors are lost. None of them counts in one of two cases:
  //   - every dummy cell is above 2^-COMPACT_SPAN of its macro-cell. What it lost is less than 2^-30 of it.
  //   - real cells weigh at least `dummy`, or not much less. Dummy cells far below the others of their macro-cell, like
  //     the border above a row of cheap costs, then are on no path that counts. For take a path from such a cell X, and
  //     Y the largest of the macro-cell or of a neighbor. Y can go along its own row, or its own column, until it meets
  //     that path, within a few cells, dummies and real ones in turn, while the path has at best dummies alone: what
  //     follows X is at most (dummy / lightest)^COLUMNS times what follows Y, but for a few weights.
  __device__ __forceinline__ bool has_failed() const {
    const bool real_cells_lead = lightest >= dummy * B::power(-B::COMPACT_SLACK / COLUMNS) &&
                                 min(lightest, dummy) >= B::power(-B::COMPACT_LIGHTEST);
    return failed || !(least >= B::power(-B::COMPACT_SPAN) || real_cells_lead);
  }

  using Flow = T;
  static __device__ __forceinline__ Flow no_flow() { return T(0); }
  static __device__ __forceinline__ Flow flow(T visits, Weight before) { return visits * reciprocal(before); }
  static __device__ __forceinline__ T shares(Weight raw, Flow x, Flow y, Flow z) { return raw * (x + y + z); }
};

// What is known of the costs beforehand; of NaN nothing but the total.
template <typename T>
struct Survey {
  T total = T(0), least = infinity<T>(), most = -infinity<T>();
  int cells = 0;

  __device__ __forceinline__ void add(T cost) {
    total += cost;
    least = min(least, cost);
    most = max(most, cost);
    ++cells;
  }
  // Whether |cost| * scale may be so small, but for rounding.
  __device__ __forceinline__ bool within(T scale, T limit) const {
    return max(fabs(least), fabs(most)) * scale <= limit + T(1);
  }
};

// Z as plain floating-point numbers. Two changes of scale bring them close to each other; neither is seen at the end,
// where every path has made the same steps:
//   - A step to the right or down in the weak lattice is worth 1 / t, diagonally 1 / t^2. A dummy cell then weighs 1
//     from the left or above, and h = 1 / t diagonally; a real cell weighs W = w / t, or W h diagonally.
//   - From each (macro-)cell to the next one r = 2^-step, diagonally r^2. `step` is a guess from the costs of what Z
//     grows by.
// A macro-cell is held as what its successors want: r B, r C, n = r^2 M, and r (r M + h r C) and r (r M + h r B), which
// the real cell below and on the right take. With all constants multiplied beforehand it takes nine operations. A cell
// of the plain lattice is held as n = r M and takes three.
//
// The numbers are right if no number was lost, being too small, that counts. What is lost is below 2^-126, or h times
// that where it comes back multiplied. It does not count in one of two cases:
//   - every dummy cell A (B and C are larger), or in the plain lattice every sum, is above 2^-SPAN max(h, 1 / r), and
//     what was lost is below 2^-30 of it.
//   - the sums of all real cells are above 2^-SPAN_LEADING h, and W is at least 1, or not much less: SLACK is divided
//     among the columns. By the argument of Compact::has_failed, what follows a lost dummy cell is then at most
//     16 (1 + h) 2^SLACK times what follows the real cell of its macro-cell.
// What is too large becomes infinite, and so does the end.
template <typename T, bool WEAK, bool SMOOTHING, int ORDER, int COLUMNS>
struct Level {
  using B = TinyBits<T>;
  using R = Rate<T>;

  template <bool, class = void>
  struct NodeOf {
    T n, b, c, below, beside;
  };
  template <class Unused>
  struct NodeOf<false, Unused> {
    T n;
  };
  using Node = NodeOf<WEAK>;

  const R rate;
  T h, r, hr, r_h_2;           // r (h + 2)
  T factor, factor_ln_2;       // of every weight: of h r, or where costs are smoothed its root
  T origin;                    // what the first cost is multiplied by where costs are smoothed
  T least_sum, least_dummy;
  T bottom_sum, bottom_dummy;
  T inverse;                   // of Z
  T correction;                // of log2 Z, for each row and column
  int step;
  bool possible;

  __device__ __forceinline__ Level(const R& rate, double gamma, double dummy, double origin_count,
                                   const Survey<T>& survey)
      : rate(rate) {
    // Logarithms to base 2 of h, of the weights and of a typical W
    const double exact_log_h = WEAK ? dummy * (LOG2_E / gamma) : 0.0;
    const T log_h = T(exact_log_h);
    const T largest = -survey.least * rate.scale, smallest = -survey.most * rate.scale;
    const T mean = -survey.total * rate.scale * reciprocal(T(survey.cells));
    const T log_w = log_h + (SMOOTHING ? T(1.25) * mean + T(0.75) * largest : T(0.6) * mean + T(0.4) * largest);
    // Of the ways to go from a cell to the next one on the diagonal, over real cells, dummy cells or both, the best.
    T growth = max(log_w, T(0.5) * log_w);
    if (WEAK) growth = max(max(log_h + T(0.5) * log_w, log_w), T(0.5) * log_h);
    growth += max(T(0.75), T(2.5) - T(0.25) * fabs(growth));  // there are many ways where all are alike
    possible = fabs(growth) < T(B::LEVEL_STEP) && largest <= T(B::LEVEL_COST) && smallest >= T(-B::LEVEL_COST) &&
               fabs(log_h) <= T(B::COMPACT_DUMMY_LIMIT) && origin_count < 1 << 8 && origin_count * (1 << 8) > 1;
    growth = possible ? growth : T(0);
    // Even without dummy cells, for the root to be exact.
    step = WEAK ? max(0, int(growth + T(0.5))) : 2 * int(T(0.5) * growth);
    const T offset = log_h - T(step);
    const T most = (SMOOTHING ? 2 * max(largest, T(0)) + T(10) : largest) + offset;
    const T fewest = (SMOOTHING ? 2 * min(smallest, T(0)) - T(8) : smallest) + offset;
    possible = possible && most <= T(B::LEVEL_WEIGHT) && fewest >= T(-B::LEVEL_WEIGHT);
    double exact_h = 1.0;
    if (WEAK) {
      const double used = possible ? exact_log_h : 0.0, rounded = used + TinyBits<double>::ROUNDER;
      exact_h = TinyBits<double>::shift(exp2_of_fraction(used - (rounded - TinyBits<double>::ROUNDER)), rounded);
    }
    h = T(exact_h);
    r = B::power(-step);
    hr = h * r;
    r_h_2 = r * (h + T(2));
    factor = SMOOTHING ? sqrt(hr) : hr;
    correction = T(0);
    if (WEAK && sizeof(T) == 4) {
      // What the rounding of h and of `factor` is on a path of each kind.
      const T share = min(max(T(0.5) + T(0.25) * (log_h - T(0.5) * log_w), T(0)), T(1));
      const T diagonals = log_w < -log_h ? T(1) : 2 * share, reals = log_w < -log_h ? T(0) : 2 - share;
      const T of_h = T(exact_h - double(h)) * reciprocal(h);
      const T of_factor = SMOOTHING ? R::multiply_add(-factor, factor, hr) * reciprocal(hr) : T(0);
      correction = (diagonals * of_h + reals * (of_h + of_factor)) * T(0.5 * LOG2_E);
    }
    factor_ln_2 = factor * T(LN_2);
    origin = T(origin_count) * factor;
    const T lightest = log_h + smallest + (SMOOTHING ? min(smallest, T(0)) : T(0));
    const bool leading = WEAK && lightest >= T(-B::LEVEL_SLACK / COLUMNS) && log_h <= T(16) &&
                         (!SMOOTHING || origin_count >= 1);
    const T most_h = max(h, T(1));
    bottom_sum = leading ? most_h * B::power(-B::LEVEL_SPAN_LEADING) : infinity<T>();
    bottom_dummy = max(most_h, B::power(step)) * B::power(-B::LEVEL_SPAN);
    least_sum = least_dummy = infinity<T>();
  }

  static __device__ __forceinline__ Node nothing() {
    Node node;
    node.n = T(0);
    if constexpr (WEAK) node.b = node.c = node.below = node.beside = T(0);
    return node;
  }
  // Before the first cell. The first sum, or the first dummy cell, is 2^exponent.
  __device__ __forceinline__ Node start(int exponent) const {
    Node node = nothing();
    node.n = WEAK ? B::power(exponent) * reciprocal(h) : B::power(exponent + step);
    return node;
  }

  __device__ __forceinline__ T weight(T cost) const {
    if constexpr (ORDER > 0 && sizeof(T) == 4) {
      // Good enough for gradients. Values may be small against gamma, or against the costs in them.
      const T power = -cost * rate.scale;
      const T rest = R::multiply_add(-cost, rate.rest, R::multiply_add(-cost, rate.scale, -power));
      return fast_exp2(power) * R::multiply_add(rest, factor_ln_2, factor);
    } else {
      T whole, rounded, part = rate.weight(cost, whole, rounded);
      return B::shift(part, rounded) * factor;
    }
  }

  // A cell from its predecessors. `sum` is what its real cell gets from them, before its own weight, `dummy` is A.
  __device__ __forceinline__ Node combine(const Node& diagonal, const Node& up, const Node& left, T weight, T& sum,
                                          T& dummy) const {
    Node node;
    if constexpr (WEAK) {
      dummy = R::multiply_add(h, diagonal.n, left.b + up.c);
      node.b = R::multiply_add(r, dummy, up.below);
      node.c = R::multiply_add(r, dummy, left.beside);
      sum = R::multiply_add(r_h_2, dummy, up.below + left.beside);
      node.n = weight * sum;
      node.below = R::multiply_add(hr, node.c, node.n);
      node.beside = R::multiply_add(hr, node.b, node.n);
    } else {
      dummy = infinity<T>();
      sum = R::multiply_add(r, diagonal.n, up.n + left.n);
      node.n = weight * sum;
    }
    return node;
  }

  __device__ __forceinline__ void note(T sum, T dummy) {
    least_dummy = B::less(least_dummy, WEAK ? dummy : sum);
    if (WEAK) least_sum = B::less(least_sum, sum);
  }
  __device__ __forceinline__ void note_dummy(T dummy) { least_dummy = B::less(least_dummy, dummy); }

  // After a sweep that arrived at `end`.
  __device__ __forceinline__ bool is_right(T end) const {
    return end >= B::power(-B::LEVEL_SPAN) && end <= B::power(B::LARGEST_POWER) &&
           (least_dummy >= bottom_dummy || least_sum >= bottom_sum);
  }

  // Sets `inverse`, and returns the start of the reversed sweep for which it is right.
  __device__ __forceinline__ Node reverse(T end) {
    const int exponent = B::exponent(end) - (WEAK ? step : 0);
    // Its products with sums stay finite, and what is lost of them is less than 2^-MARGIN of a visit.
    const int begin = min(B::LEVEL_START, B::LEVEL_WEIGHT - exponent);
    possible = exponent + begin >= B::LEVEL_MARGIN;
    inverse = B::power(possible ? -exponent - begin : 0) * reciprocal(B::mantissa(end));
    return start(begin);
  }

  // -gamma log Z = gamma_ln_2 * -log2_of(end) + steps of the weak lattice * dummy
  __device__ __forceinline__ double log2_of(T end, int rows, int columns) const {
    // What is whole first: the logarithm of a number near 2^LEVEL_START is rounded to far more than that of its mantissa.
    const int steps = rows + columns - (WEAK ? 0 : 1), whole = B::exponent(end) + steps * step - B::LEVEL_START;
    return log2(double(B::mantissa(end))) + double(whole) + double(steps) * double(correction);
  }
};
