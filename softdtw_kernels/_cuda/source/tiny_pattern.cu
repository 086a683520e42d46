// Many small pairs with other steps, begins or ends than the plain recursion has: a thread does a whole pair, cell by cell. Its
// status says which items are left to the wide arithmetic, in the launch of lattice.cu that follows.
//
// Numbers of float32 are tried without exponents first: Z[i, j] times a power of 2 for every step to i and to j, half of what
// costs are on the average, which leaves all alignments of a pair what they are to each other. Where one leaves the range of
// floats, or costs are too large for that, it is the arithmetic of numbers.cuh.
//
// Compiled once for each combination of
//   WITH_COST     float or double, the dtype of the cost
//   WITH_COLUMNS  the most columns of a cost matrix
//   WITH_ORDER    0: value; 1: gradient
//   WITH_RESTRICTED  1: lengths or a band are given, or there are fewer columns than WITH_COLUMNS
#include "sweeps.cuh"

typedef WITH_COST COST;
typedef Scaled<COST> Arithmetic;
typedef Arithmetic::Number Number;
typedef OfPattern<Arithmetic, true> ThePattern;
constexpr int COLUMNS = WITH_COLUMNS, THREADS = 64;
constexpr bool KEEP = WITH_ORDER > 0, RESTRICTED = WITH_RESTRICTED;

struct TinyPair {
  typedef ::Arithmetic Arithmetic;
  static constexpr bool MAY_WARP = sizeof(COST) == 8;
  const PatternProblem& problem;
  Item<false> item;
  const COST* cost;
  Number* column;            // scratch: of a thread, its last column, and what each cell has of its predecessors
  Vector<COST, 2>* kept;
  int64 threads;
  int status;
  double gamma;
  Arithmetic arithmetic;
  ThePattern pattern;

  __device__ __forceinline__ TinyPair(const PatternProblem& problem, int64 p, int64 thread, int64 threads)
      : problem(problem), item(problem, p), threads(threads), status(item.status), gamma(problem.gamma_of(p)) {
    cost = static_cast<const COST*>(problem.cost) + problem.cost_offset(p);
    column = static_cast<Number*>(problem.tiles) + thread;
    kept = reinterpret_cast<Vector<COST, 2>*>(static_cast<Number*>(problem.tiles) + problem.rows * threads) + thread;
    status |= arithmetic.start(gamma);
    if constexpr (MAY_WARP) {
      const double warp = problem.warp_of(p);
      if (warp != 0) arithmetic.start_warped(warp, gamma, item.n + item.m, problem.single);
    }
    status |= pattern.start(problem, p, 0, gamma, item.n, item.m);
  }

  __device__ __forceinline__ int m() const { return RESTRICTED ? item.m : COLUMNS; }
  __device__ __forceinline__ bool inside(int row, int c) const { return !RESTRICTED || (c < m() && item.in_band(row, c)); }
  __device__ __forceinline__ Vector<COST, 2>& kept_at(int row, int c) const { return kept[(row * COLUMNS + c) * threads]; }

  typedef Number Row[COLUMNS];

  // In a row; +inf outside of the lattice.
  __device__ __forceinline__ void load_row(int row, COST (&out)[COLUMNS]) const {
    const COST* here = cost + row * problem.stride_row;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c, here += problem.stride_column) out[c] = inside(row, c) ? *here : infinity<COST>();
  }

  static __device__ __forceinline__ float power(int n) { return __int_as_float((127 + n) << 23); }
  // Of the number z * 2^-gauge.
  static __device__ __forceinline__ Number number_of(float z, int gauge) {
    if (!(z > 0.0f)) return Arithmetic::zero();
    const int units = Bits<float>::units(z), whole = (32 - gauge) >> 6;
    return {COST(Bits<float>::without(z, units) * power(-gauge - 64 * whole)), whole + units};
  }

  // Numbers without exponents: what they are made by.
  struct Flat {
    float scale, both, up, left, skip;  // the power of 2 of two steps; that of one, or 0 where it is not taken
    float least;                        // number of a cell: what two steps leave of it is still one
    int step;
  };
  static constexpr float MOST = 7.9228163e28f, LARGEST = 3.4028235e38f;  // 2^96, and the last float

  // False if such numbers do not do.
  __device__ __forceinline__ bool start_flat(Flat& flat) const {
    flat.scale = float(arithmetic.scale);
    float sum_of_costs = 0, largest = 0, count = 0;
#pragma unroll 1
    for (int row = 0; row < item.n; ++row) {
      COST costs[COLUMNS];
      load_row(row, costs);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const float finite = costs[c] == infinity<COST>() ? 0.0f : float(costs[c]);
        sum_of_costs += finite;
        count += costs[c] == infinity<COST>() ? 0.0f : 1.0f;
        largest = fmaxf(largest, fabs(finite));
      }
    }
    const float mean = sum_of_costs * flat.scale / fmaxf(count, 1.0f);
    if (!(fabs(mean) <= 64.0f && largest * -flat.scale <= 96.0f)) return false;  // NaN is neither
    flat.step = int(rintf(-0.5f * mean));
    flat.skip = 0;
    if (pattern.begins || pattern.ends) {
      const double log2_skip = pattern.of_ends.log2_skip + flat.step;
      if (!(fabs(log2_skip) * COLUMNS < 80)) return false;
      flat.skip = fast_exp2(float(log2_skip));
    }
    flat.both = power(2 * flat.step);
    flat.up = pattern.up ? power(flat.step) : 0.0f;
    flat.left = pattern.left ? power(flat.step) : 0.0f;
    flat.least = power(max(-96, -126 - 2 * flat.step));
    return true;
  }

  // False if a number has left the range. Into `last` go the numbers of the last row, into `total` the sum over all ends.
  // What is kept of a cell: the shares of its predecessors, or with WEIGHTS what has come to it and its own weight.
  template <bool WEIGHTS>
  __device__ __forceinline__ bool sweep_flat(const Flat& flat, Row& last, float& total) const {
    const bool begins_x = pattern.begins & OF_X, begins_y = pattern.begins & OF_Y;
    float z[COLUMNS], begin = 1.0f, of_columns = 0.0f;
    bool right = true;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) z[c] = 0.0f;
#pragma unroll 1
    for (int row = 0; row < item.n; ++row) {
      COST costs[COLUMNS];
      load_row(row, costs);
      float left = 0.0f, diagonal = row == 0 || begins_x ? begin : 0.0f, of_column = 0.0f, begin_above = begin;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const float over = z[c], up = over * flat.up, beside = left * flat.left;
        const float sum = (diagonal + up) + beside, weight = fast_exp2(float(costs[c]) * flat.scale);
        left = weight == 0.0f ? 0.0f : sum * weight;
        right &= (left >= flat.least && left <= MOST) || sum == 0.0f || weight == 0.0f;
        if (!WEIGHTS) right &= sum <= (KEEP ? LARGEST_DIVISOR : LARGEST);  // NaN is not
        if (KEEP && WEIGHTS) kept_at(row, c) = {{COST(sum), COST(weight)}};
        if (KEEP && !WEIGHTS) {
          const float inverse = sum == 0.0f ? 0.0f : reciprocal(sum), rest = inverse * fmaf(-sum, inverse, 1.0f);
          const float p_up = fmaf(up, inverse, up * rest), p_left = fmaf(beside, inverse, beside * rest);
          kept_at(row, c) = {{COST(diagonal == 0.0f ? -p_up : p_up), COST(p_left)}};
        }
        begin_above *= flat.skip;
        diagonal = row == 0 && begins_y ? begin_above : over * flat.both;
        z[c] = left;
        if (c == m() - 1) of_column = left;
      }
      if (WEIGHTS) of_columns = pattern.ends & OF_X ? fmaf(of_columns, flat.skip, of_column) : of_column;
      else if (pattern.ends & OF_X) column[row * threads] = number_of(of_column, flat.step * (row + m() - 1));
      begin *= flat.skip;
    }
    if constexpr (WEIGHTS) {
      float of_row = 0.0f;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
        if (pattern.ends & OF_Y && c < m() - 1) of_row = (of_row + z[c]) * flat.skip;
      total = of_columns + of_row;
      return right && total >= flat.least && total <= MOST;
    } else {
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) last[c] = number_of(z[c], flat.step * (item.n - 1 + c));
      return right;
    }
  }

  // Writes the gradient in the costs, as tiny.cu does: what has come to a cell times what follows it, over the sum of all.
  // Numbers too small to be one are less than 2^-30 of a visit. False if one was too large.
  __device__ __forceinline__ bool sweep_back_flat(const Flat& flat, float total, COST scale) const {
    const float inverse = 1.0f / total;
    COST* const grad = grad_row(0);
    float below[COLUMNS], of_column = inverse;
    bool right = true;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) below[c] = 0.0f;
#pragma unroll 1
    for (int row = item.n - 1; row >= 0; --row) {
      const bool is_last = row == item.n - 1, of_row = is_last && pattern.ends & OF_Y;
      COST* out = grad + row * problem.dense_row + (COLUMNS - 1) * problem.dense_column;
      float beside = 0.0f, diagonal = 0.0f, end = inverse;
#pragma unroll
      for (int c = COLUMNS - 1; c >= 0; --c) {
        const Vector<COST, 2> kept_here = kept_at(row, c);
        const float over = below[c];
        float follows = fmaf(diagonal, flat.both, fmaf(over, flat.up, beside * flat.left));
        if (c == m() - 1) follows += is_last || pattern.ends & OF_X ? of_column : 0.0f;
        if (of_row && c < m() - 1) follows += end *= flat.skip;
        beside = follows * float(kept_here.v[1]);
        right &= beside <= MOST;  // NaN is not
        const COST visits = COST(fminf(float(kept_here.v[0]), LARGEST) * beside);  // not inf times 0
        if (inside(row, c)) *out = visits == COST(0) ? COST(0) : scale * visits;
        out -= problem.dense_column;
        diagonal = over;
        below[c] = beside;
      }
      of_column *= flat.skip;
    }
    return right;
  }

  // False if some costs ask for more care. Between two numbers of so few cells no exponent gets lost.
  template <bool CAREFUL>
  __device__ __forceinline__ bool sweep_forward(Row& above) {
    bool beyond = false;
    const bool begins_x = pattern.begins & OF_X, begins_y = pattern.begins & OF_Y;
    Number diagonal = Arithmetic::one();
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) above[c] = begins_y ? pattern.of_ends.begin(c + 1) : Arithmetic::zero();
#pragma unroll 1
    for (int row = 0; row < item.n; ++row) {
      const bool up = pattern.up && row > 0;
      COST costs[COLUMNS];
      load_row(row, costs);
      Number left = Arithmetic::zero();
      if (row > 0) diagonal = begins_x ? pattern.of_ends.begin(row) : Arithmetic::zero();
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        Arithmetic::Weight weight;
        if constexpr (CAREFUL) weight = arithmetic.careful_weight(costs[c], status);
        else weight = arithmetic.weight(costs[c], beyond);
        Transition<COST> p;
        const Number over = above[c];
        left = arithmetic.combine(diagonal, Ends<Arithmetic>::masked(over, up), Ends<Arithmetic>::masked(left, pattern.left && c > 0),
                                  weight, p, KEEP);
        if (KEEP) kept_at(row, c) = {{p.diagonal == COST(0) ? -p.up : p.up, p.left}};
        above[c] = left;
        diagonal = over;
        if (pattern.ends & OF_X && c == m() - 1) column[row * threads] = left;
      }
    }
    return !beyond;
  }

  // Calls `take` with every end, how many frames it leaves out, and its place.
  template <class Take>
  __device__ __forceinline__ void visit_ends(const Row& above, Take take) const {
#pragma unroll 1
    for (int row = 0; row < pattern.ends_of_column(); ++row) take(column[row * threads], item.n - 1 - row, row);
    if (pattern.ends & OF_Y) {
#pragma unroll 1
      for (int k = 0; k < m(); ++k) {
        Number z = above[0];
#pragma unroll
        for (int c = 1; c < COLUMNS; ++c)
          if (c == k) z = above[c];
        take(z, m() - 1 - k, pattern.place_of(k));
      }
    }
  }

  __device__ __forceinline__ Number end(const Row& above) {
    if (!pattern.ends) {
      Number z = above[0];
#pragma unroll
      for (int c = 1; c < COLUMNS; ++c)
        if (c == m() - 1) z = above[c];
      return z;
    }
    auto& ends = pattern.of_ends;
    double most = -infinity<double>(), others = 0;
    visit_ends(above, [&](const Number& z, int skipped, int) { most = max(most, ends.log2_of_end(z, skipped)); });
    ends.total = most;
    if (!(fabs(most) < infinity<double>())) return Arithmetic::zero();
    visit_ends(above, [&](const Number& z, int skipped, int) { others += exp2(ends.log2_of_end(z, skipped) - most); });
    ends.total = most + log2_of(others);
    return ends.of_log2(ends.total);
  }

  // Writes the gradient in the costs, from the last row to the first.
  template <bool WITH_SUMS>
  __device__ __forceinline__ void sweep_backward(const Row& above, COST scale) {
    const int n = item.n, m = this->m();
    COST* const grad = grad_row(0);
    COST below[COLUMNS];
    double entropy = 0, skipped = 0;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      below[c] = !pattern.ends && c == m - 1 ? COST(1) : COST(0);
      if (pattern.ends & OF_Y && c < m) below[c] = COST(pattern.of_ends.share(above[c], m - 1 - c, 0));
    }
    if (WITH_SUMS && pattern.ends)
      visit_ends(above, [&](const Number& z, int left_out, int place) {
        const double share = pattern.of_ends.share(z, left_out, place);
        if (share > 0) entropy -= share * log(share);
        skipped += share * left_out;
      });
#pragma unroll 1
    for (int row = n - 1; row >= 0; --row) {
      COST* out = grad + row * problem.dense_row + (COLUMNS - 1) * problem.dense_column;
      COST from_right = COST(0), diagonally = COST(0), of_column = COST(0);
      if (row < pattern.ends_of_column()) of_column = COST(pattern.of_ends.share(column[row * threads], n - 1 - row, 0));
#pragma unroll
      for (int c = COLUMNS - 1; c >= 0; --c) {
        const Vector<COST, 2> p = kept_at(row, c);
        const COST visits = below[c] + from_right + (c == m - 1 ? of_column : COST(0));
        const COST up = visits * fabs(p.v[0]), left = visits * p.v[1];
        COST over = max((visits - up) - left, COST(0));
        if (Bits<COST>::has_sign(p.v[0])) over = COST(0);
        if (inside(row, c)) *out = visits == COST(0) ? COST(0) : scale * visits;
        out -= problem.dense_column;
        if (WITH_SUMS && visits != COST(0)) {
          entropy += double(visits * entropy_of_shares(fabs(p.v[0]), p.v[1]));
          if (c == 0 && pattern.begins & OF_X) skipped += double(over) * row;
          if (row == 0 && pattern.begins & OF_Y) skipped += double(over) * c;
        }
        from_right = left;
        below[c] = up + diagonally;
        diagonally = over;
      }
    }
    if (WITH_SUMS) {
      problem.grad_gamma[item.pair] = entropy == 0 ? 0.0 : -double(scale) * entropy;
      problem.grad_skip[item.pair] = skipped == 0 ? 0.0 : double(scale) * skipped;
    }
  }

  __device__ __forceinline__ COST* grad_row(int row) const {
    return static_cast<COST*>(problem.grad_cost) + problem.dense_offset(item.pair) + row * problem.dense_row;
  }

  __device__ __forceinline__ void fill(COST value) const {
    for (int row = 0; row < item.n; ++row)
      for (int c = 0; c < m(); ++c)
        if (inside(row, c)) grad_row(row)[c * problem.dense_column] = value;
    if (!problem.grad_gamma) return;
    problem.grad_gamma[item.pair] = problem.grad_skip[item.pair] = value;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) tiny_pattern(const __grid_constant__ PatternProblem problem) {
  const int64 thread = int64(blockIdx.x) * THREADS + threadIdx.x, threads = int64(gridDim.x) * THREADS;
  for (int64 p = thread; p < problem.pairs; p += threads) {
    TinyPair pair(problem, p, thread, threads);
    Number end = Arithmetic::zero();
#if WITH_ORDER == 0
    double value = 0;
#endif
    TinyPair::Row row;
    if (!(pair.status & (NOT_A_NUMBER | OUT_OF_RANGE))) {
      bool done = false;
      if constexpr (sizeof(COST) == 4) {
        TinyPair::Flat flat;
        float total;
        done = pair.start_flat(flat);
#if WITH_ORDER > 0
        if (done && !problem.grad_gamma && pair.sweep_flat<true>(flat, row, total) &&
            pair.sweep_back_flat(flat, total, static_cast<const COST*>(problem.grad_value)[p * problem.grad_value_stride])) {
          problem.status[p] = pair.status;
          continue;
        }
        done = done && problem.grad_gamma;
#endif
        done = done && pair.sweep_flat<false>(flat, row, total);
      }
      if (!done && !pair.sweep_forward<false>(row)) pair.sweep_forward<true>(row);
      const int cells = pair.item.n + pair.item.m;
      pair.status |= pair.arithmetic.final_status(cells);
      end = pair.end(row);
      if (Arithmetic::is_zero(end)) pair.status |= NO_PATH;
      if (Arithmetic::masks_matter(end, pair.status)) pair.status |= OUT_OF_RANGE;
#if WITH_ORDER == 0
      if (!Arithmetic::is_zero(end)) value = value_of(problem, pair, end, pair.pattern, pair.status);
#endif
      if (pair.status & OUT_OF_RANGE) pair.status &= ~NO_PATH;
    }
    problem.status[p] = pair.status;
    if (is_for_wide(problem, pair.status)) continue;
    const bool bad = pair.status & NOT_A_NUMBER, none = pair.status & NO_PATH;
#if WITH_ORDER == 0
    static_cast<COST*>(problem.value)[p] = COST(bad ? not_a_number() : none ? infinity<double>() : value);
#else
    const COST scale = static_cast<const COST*>(problem.grad_value)[p * problem.grad_value_stride];
    if (bad || none) pair.fill(bad ? COST(not_a_number()) : COST(0));
    else if (problem.grad_gamma) pair.sweep_backward<true>(row, scale);
    else pair.sweep_backward<false>(row, scale);
#endif
  }
}
