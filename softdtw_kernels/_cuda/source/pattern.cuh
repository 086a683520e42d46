// Other steps, begins and ends than the plain recursion has, as a strip needs them: softdtw_kernels/_pattern.py for kernels.
//
// A path that begins at a pair in the first column or row comes there by a diagonal step out of a border of weights, one for
// every number of frames left out: what a plain strip has in the one cell before the origin. No other step leads out of it.
// At an open end a path leaves the lattice from any pair of the last column or row. Their nodes go to memory, and when all
// are there, the warp of the last strip takes the sum over them; backward, each has its share of the one visit.
//
// Steps that are not taken have their predecessor masked. Where costs of warping count, the host has added them to the costs and
// to the price of a frame left out, but for Wide.
#pragma once
#include "lattices.cuh"

#define SOFTDTW_PATTERN_FIELDS(X)                                                                     \
  X(int64, repeats)                 /* Sides whose frames may be matched more than once */            \
  X(int64, begins)                  /* whose first frames may be left out */                          \
  X(int64, ends)                    /* whose last ones */                                             \
  X(const double*, skip)            /* the price of a frame left out: item p has skip[p * skip_stride] */ \
  X(int64, skip_stride)                                                                               \
  X(double, skip_number)            /* instead, where skip is null */                                 \
  X(void*, end_nodes)               /* (slots, or pairs if kept, 2 + rows + columns): see OfPattern */                  \
  X(double*, grad_skip)             /* out, (pairs, parts) */

enum Sides { OF_X = 1, OF_Y = 2 };

struct PatternProblem : Problem {
  SOFTDTW_PATTERN_FIELDS(SOFTDTW_FIELD)
  __device__ __forceinline__ double skip_of(int64 p) const { return skip ? skip[p * skip_stride] : skip_number; }
};

// What an arithmetic does with ends: their sum, and the share of each in it. `place` is the one of an end in the order of
// ends, for the hard minimum takes the first of equal ones.
template <class A>
struct Ends;

template <typename T>
struct Ends<Scaled<T>> {
  typedef typename Scaled<T>::Number Number;
  static constexpr double MOST = 1 << 24;  // of the logarithm of all weights of frames left out together
  double log2_skip;  // of the weight of one frame left out
  double total;      // log2

  __device__ __forceinline__ int start(double price, double gamma, int frames) {
    log2_skip = -price * LOG2_E / gamma;
    return fabs(log2_skip) * frames <= MOST ? FINE : OUT_OF_RANGE;
  }
  static __device__ __forceinline__ Number of_log2(double x) {
    const double whole = floor(x * (1.0 / Scaled<T>::UNIT) + 0.5);
    return {T(exp2(x - whole * Scaled<T>::UNIT)), int(whole)};
  }
  __device__ __forceinline__ Number begin(int skipped) const { return of_log2(skipped * log2_skip); }
  // What prices may add up to.
  __device__ __forceinline__ double at_most(double gamma, int frames) const { return fabs(log2_skip) * LN_2 * gamma * frames; }
  static __device__ __forceinline__ Number masked(Number z, bool kept) {
    if (!kept) z.exponent = NOTHING;
    return z;
  }

  __device__ __forceinline__ double log2_of_end(const Number& z, int skipped) const {
    return Scaled<T>::is_zero(z) ? -infinity<double>() : Scaled<T>::log2_of_number(z) + skipped * log2_skip;
  }
  // All lanes; `visit` calls its argument with each of the lane's ends, in order.
  template <class Visit>
  __device__ __forceinline__ Number sum(Visit visit) {
    double most = -infinity<double>(), others = 0;
    visit([&](const Number& z, int skipped, int) { most = max(most, log2_of_end(z, skipped)); });
#pragma unroll 1
    for (int k = 0; k < LANES; ++k) most = max(most, from_lane(most, k));
    total = most;
    if (!(fabs(most) < infinity<double>())) return Scaled<T>::zero();
    visit([&](const Number& z, int skipped, int) { others += exp2(log2_of_end(z, skipped) - most); });
    total = most + log2_of(warp_sum(others));
    return of_log2(total);
  }
  __device__ __forceinline__ double share(const Number& z, int skipped, int) const {
    return Scaled<T>::is_zero(z) ? 0.0 : exp2(log2_of_end(z, skipped) - total);
  }

  __device__ __forceinline__ void keep(Number* place) const { *reinterpret_cast<double*>(place) = total; }
  __device__ __forceinline__ void recall(const Number* place) { total = *reinterpret_cast<const double*>(place); }
};

template <typename C>
struct Ends<Wide<C>> {
  typedef typename Wide<C>::Number Number;
  double price, gamma;
  Number total;
  double first;  // of the least ends, its place

  __device__ __forceinline__ int start(double price_of_item, double gamma_of_item, int) {
    price = price_of_item;
    gamma = gamma_of_item;
    return FINE;
  }
  // z and so many prices, whose product is a sum of two.
  __device__ __forceinline__ Number with_prices(const Number& z, int skipped) const {
    const double product = price * skipped, rest = fma(price, double(skipped), -product);
    Triple sum = z;
#pragma unroll 1
    for (int k = 0; k < 2; ++k) sum = sum.plus(k == 0 ? product : rest);
    return Wide<C>::number_of(sum);
  }
  __device__ __forceinline__ Number begin(int skipped) const { return with_prices(Wide<C>::one(), skipped); }
  static __device__ __forceinline__ Number masked(const Number& z, bool kept) { return kept ? z : Wide<C>::zero(); }

  __device__ __forceinline__ Number end(const Number& z, int skipped) const {
    return Wide<C>::is_zero(z) ? z : with_prices(z, skipped);
  }
  template <class Visit>
  __device__ __forceinline__ Number sum(Visit visit) {
    Number least = Wide<C>::zero();
    int place_of_least = 0x7fffffff;
    visit([&](const Number& z, int skipped, int place) { take(end(z, skipped), place, least, place_of_least); });
#pragma unroll 1
    for (int k = 1; k < LANES; k *= 2) {  // lanes that differ in one bit, both ways
      const int other = (threadIdx.x % LANES) ^ k;
      take(from_lane(least, other), from_lane(place_of_least, other), least, place_of_least);
    }
    total = least;
    first = place_of_least;
    if (Wide<C>::is_zero(least)) return least;
    if (gamma > 0) {
      double others = 0;
      visit([&](const Number& z, int skipped, int place) {
        if (place != place_of_least && !Wide<C>::is_zero(z)) others += exp(-end(z, skipped).minus(least) / gamma);
      });
      total = Wide<C>::number_of(least.plus(-gamma * log1p(warp_sum(others))));
    }
    return total;
  }
  static __device__ __forceinline__ void take(const Number& z, int place, Number& least, int& place_of_least) {
    const bool is_less = Wide<C>::is_less(z, least), is_equal = !is_less && !Wide<C>::is_less(least, z);
    if (Wide<C>::is_zero(z) || !(is_less || (is_equal && place < place_of_least))) return;
    least = z;
    place_of_least = place;
  }
  __device__ __forceinline__ double share(const Number& z, int skipped, int place) const {
    if (Wide<C>::is_zero(z)) return 0.0;
    return gamma > 0 ? exp(-end(z, skipped).minus(total) / gamma) : place == int(first) ? 1.0 : 0.0;
  }

  __device__ __forceinline__ void keep(Number* place) const {
    place[0] = total;
    *reinterpret_cast<double*>(place + 1) = first;
  }
  __device__ __forceinline__ void recall(const Number* place) {
    total = place[0];
    first = *reinterpret_cast<const double*>(place + 1);
  }
};

// The pattern of an item, for a strip. Of the plain recursion there is nothing here.
template <class A, bool IS>
struct OfPattern {
  __device__ __forceinline__ int start(const Problem&, int64, int64, double, int, int) { return FINE; }
  static __device__ __forceinline__ double skipped_at_most(double, int) { return 0; }
};

template <class A>
struct OfPattern<A, true> {
  typedef typename A::Number Number;
  typedef typename A::Real Real;
  Ends<A> of_ends;
  int begins, ends, n, m;
  bool up, left, left_of_lane;       // the steps there are; whether that to the lane's first column is one
  Real up_factor, left_factor, left_of_lane_factor;  // 1 or 0
  int end_column;   // what a lane hands on, of its columns
  int border_lane;  // which does; -1: none
  Number* kept;     // of the item: the sum, then the last column, as borders hold it, and the last row

  // Returns the status that prices cause.
  __device__ __forceinline__ int start(const Problem& given, int64 pair, int64 slot, double gamma, int rows, int columns) {
    const PatternProblem& problem = static_cast<const PatternProblem&>(given);
    n = rows;
    m = columns;
    begins = int(problem.begins);
    ends = int(problem.ends);
    // A frame of y meets another one of x by a step from above.
    up = problem.repeats & OF_Y;
    left = problem.repeats & OF_X;
    up_factor = up ? Real(1) : Real(0);
    left_factor = left ? Real(1) : Real(0);
    kept = static_cast<Number*>(problem.end_nodes) + (problem.kept ? pair : slot) * (2 + problem.rows + problem.columns);
    if (!begins && !ends) return FINE;  // and no price counts
    const double price = problem.skip_of(pair);
    return !(fabs(price) < infinity<double>()) ? NOT_A_NUMBER : of_ends.start(price, gamma, n + m);
  }

  template <int C>
  __device__ __forceinline__ void select(int begin, bool is_last, int top_lane) {
    left_of_lane = left && !(begins & OF_X && begin == 0);
    left_of_lane_factor = left_of_lane ? Real(1) : Real(0);
    end_column = is_last ? (m - 1) % C : C - 1;
    border_lane = !is_last ? LANES - 1 : ends & OF_X ? top_lane : -1;
  }

  __device__ __forceinline__ bool is_restricted() const { return !(up && left); }
  __device__ __forceinline__ double skipped_at_most(double gamma, int frames) const {
    return begins || ends ? of_ends.at_most(gamma, frames) : 0.0;
  }
  __device__ __forceinline__ Number* column() const { return kept + 2; }
  __device__ __forceinline__ Number* row() const { return kept + 2 + n; }

  // Ends of the last column but for the one that is of the last row too.
  __device__ __forceinline__ int ends_of_column() const { return !(ends & OF_X) ? 0 : ends & OF_Y ? n - 1 : n; }
  __device__ __forceinline__ int place_of(int column) const { return ends_of_column() + column; }
};
