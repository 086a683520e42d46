// The value of many small alignment problems, or its gradient: a thread does a whole pair.
//
// The state of one row of the lattice lies in registers, one (macro-)cell a column, unrolled over the columns. The
// gradient keeps Z at the real cells of the forward sweep, sweeps the reversed lattice, and takes the visits of a real
// cell as alpha * beta / Z: in lattices this small rounding has no time to grow. S2DTW's local smoothing is a sum of
// three weights here, exp(-s / gamma) = exp(-cost / gamma) * sum over predecessors of exp(-cost / gamma), so that raw
// costs are all that is read. Gradients in gamma and the dummy cost are left to lattice.cu.
//
// Each item is done in the fastest arithmetic of tiny.cuh that it allows: a look at its costs says which may be worth a
// try, and the numbers in the end whether it was right. That is for the item alone to decide, never for its neighbors.
//
// Items that need more than this arithmetic are listed in `marked` for tiny_exact.cu.
//
// The file is long since forward and backward sweeps are unrolled over the same registers, once for each arithmetic.
//
// Compiled once for each combination of
//   WITH_COST        float or double, the dtype of the cost
//   WITH_COLUMNS     the most columns of a cost matrix
//   WITH_WEAK        1: the weak lattice with dummy cells
//   WITH_SMOOTHING   1: costs are smoothed locally first
//   WITH_ORDER       0: value; 1: gradient
//   WITH_RESTRICTED  1: lengths or a band are given, or there are fewer columns than WITH_COLUMNS
//   WITH_VECTORS     1: rows of the cost, and of its gradient, can be read and written 16 bytes at a time
//   WITH_THREADS     threads a block
//   WITH_SHARED      1: Z of the real cells lies in shared memory, else in `kept`
#include "tiny.cuh"

#define SOFTDTW_TINY_FIELDS(X)                                                           \
  X(double, origin_count)      /* of the smoothing */                                    \
  X(const void*, grad_value)   /* in the dtype of the cost */                            \
  X(int64, grad_value_stride)                                                            \
  X(void*, value)              /* out */                                                 \
  X(void*, grad_cost)          /* out, shaped like the cost */                           \
  X(void*, kept)               /* (rows, columns, threads of the grid) */                \
  X(int64*, marked)            /* out: the items left to tiny_exact.cu, in any order */  \
  X(int*, marked_count)        /* 0 at first */

typedef WITH_COST COST;
constexpr int COLUMNS = WITH_COLUMNS, THREADS = WITH_THREADS, ORDER = WITH_ORDER;
constexpr bool WEAK = WITH_WEAK, SMOOTHING = WITH_SMOOTHING, RESTRICTED = WITH_RESTRICTED;
constexpr bool MAY_WARP = !WEAK && !SMOOTHING && sizeof(COST) == 8;
constexpr int IN_VECTOR = 16 / int(sizeof(COST));

struct TinyProblem : Batch {
  SOFTDTW_TINY_FIELDS(SOFTDTW_FIELD)
};

typedef Vector<COST, IN_VECTOR> SomeCosts;

// What a thread knows of its item.
struct Pair {
  const TinyProblem& problem;
  Item<false> item;
  const COST* cost;
  COST* grad;
  Tiny<COST>* kept;
  double gamma, dummy;

  __device__ __forceinline__ Pair(const TinyProblem& problem, int64 p) : problem(problem), item(problem, p) {
    // 32 bits: the host sees to it that there are fewer pairs, and division of 64 bits is slow.
    const unsigned q = unsigned(p), n2 = unsigned(problem.batch2), n1 = unsigned(problem.batch1);
    const unsigned b1 = q / n2, b2 = q - b1 * n2, b0 = b1 / n1;
    const int64 over = b0, row = b1 - b0 * n1, last = b2;
    cost = static_cast<const COST*>(problem.cost) + (over * problem.stride_b0 + row * problem.stride_b1 + last * problem.stride_b2);
    grad = static_cast<COST*>(problem.grad_cost) + (over * problem.dense_b0 + row * problem.dense_b1 + last * problem.dense_b2);
    gamma = problem.gamma_of(p);
    dummy = WEAK ? problem.dummy_of(p) : 0.0;
#if WITH_SHARED
    DYNAMIC_SHARED(shared);
    kept = reinterpret_cast<Tiny<COST>*>(shared) + threadIdx.x;
#else
    kept = static_cast<Tiny<COST>*>(problem.kept) + (int64(blockIdx.x) * THREADS + threadIdx.x);
#endif
  }

  __device__ __forceinline__ bool inside(int row, int column) const {
    return !RESTRICTED || (column < item.m && item.in_band(row, column));
  }

  __device__ __forceinline__ void load_row(int row, COST (&out)[COLUMNS]) const {
    const COST* here = cost + row * problem.stride_row;
#if WITH_VECTORS
#pragma unroll
    for (int k = 0; k < COLUMNS / IN_VECTOR; ++k) {
      const SomeCosts some = reinterpret_cast<const SomeCosts*>(here)[k];
#pragma unroll
      for (int l = 0; l < IN_VECTOR; ++l) out[k * IN_VECTOR + l] = some.v[l];
    }
#else
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (inside(row, c)) out[c] = here[c * problem.stride_column];
#endif
    // What is outside is read by nobody else, and its weight is 0.
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (!inside(row, c)) out[c] = COST(0);
  }

  __device__ __forceinline__ void store_row(int row, const COST (&values)[COLUMNS]) const {
    COST* here = grad + row * problem.dense_row;
#if WITH_VECTORS && !WITH_RESTRICTED
#pragma unroll
    for (int k = 0; k < COLUMNS / IN_VECTOR; ++k) {
      SomeCosts some;
#pragma unroll
      for (int l = 0; l < IN_VECTOR; ++l) some.v[l] = values[k * IN_VECTOR + l];
      reinterpret_cast<SomeCosts*>(here)[k] = some;
    }
#else
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (inside(row, c)) here[c * problem.dense_column] = values[c];
#endif
  }

  __device__ __forceinline__ Tiny<COST>& kept_at(int row, int column) const {
#if WITH_SHARED
    return kept[(row * COLUMNS + column) * THREADS];
#else
    return kept[int64(row * COLUMNS + column) * (int64(gridDim.x) * THREADS)];
#endif
  }

  struct alignas(2 * sizeof(COST)) KeptSum {
    COST sum, raw;
  };
  __device__ __forceinline__ KeptSum& kept_sum_at(int row, int column) const {
    static_assert(sizeof(KeptSum) == sizeof(Tiny<COST>), "in the same place");
    return reinterpret_cast<KeptSum&>(kept_at(row, column));
  }

  // Of a path, at most.
  __device__ __forceinline__ int cells() const { return WEAK ? 2 * (item.n + item.m) + 2 : item.n + item.m; }
};

template <class A>
__device__ __forceinline__ typename A::Weight weight_inside(A& arithmetic, COST cost, bool inside) {
  typename A::Weight weight = arithmetic.weight(cost);
  return inside ? weight : A::nothing_weighs();
}

// Z of the end. Keeps Z of the real cells for the gradient.
template <class A>
__device__ __forceinline__ Tiny<COST> sweep_forward(const Pair& pair, A& arithmetic) {
  using Node = typename A::Node;
  using Weight = typename A::Weight;
  Node above[COLUMNS + 1];
  Weight raw_above[COLUMNS];
  Tiny<COST> sum, end = {COST(0), TINY_ZERO};
#pragma unroll
  for (int c = 0; c <= COLUMNS; ++c) above[c] = A::nothing();
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) raw_above[c] = A::nothing_weighs();
  for (int row = 0; row < pair.item.n; ++row) {
    COST costs[COLUMNS];
    pair.load_row(row, costs);
    Node left = A::nothing(), diagonal = A::nothing();
    if (row == 0) diagonal = A::start();
    Weight raw_left = A::nothing_weighs(), raw_diagonal = A::nothing_weighs();
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      Weight weight = weight_inside(arithmetic, costs[c], pair.inside(row, c));
      if (SMOOTHING) {
        Weight before = A::add(raw_diagonal, raw_above[c], raw_left);
        if (c == 0 && row == 0) before = A::weight_of(pair.problem.origin_count);
        raw_diagonal = raw_above[c];
        raw_above[c] = raw_left = weight;
        weight = A::smoothed(weight, before);
      }
      if (pair.inside(row, c)) arithmetic.note(weight);
      Node node = arithmetic.combine(diagonal, above[c], left, weight, sum);
      diagonal = above[c];
      above[c] = left = node;
      if (ORDER > 0) pair.kept_at(row, c) = A::real(node);
      if (!WEAK && (RESTRICTED ? c == pair.item.m - 1 : c == COLUMNS - 1)) end = A::real(node);
    }
    if (WEAK) above[COLUMNS] = arithmetic.combine(diagonal, above[COLUMNS], left, A::nothing_weighs(), sum);
  }
  if (WEAK) {  // the last row of dummy cells
    Node left = A::nothing(), diagonal = A::nothing();
#pragma unroll
    for (int c = 0; c <= COLUMNS; ++c) {
      Tiny<COST> corner;
      Node node = arithmetic.combine(diagonal, above[c], left, A::nothing_weighs(), sum, &corner);
      diagonal = above[c];
      left = node;
      if (RESTRICTED ? c == pair.item.m : c == COLUMNS) end = corner;
    }
  }
  return end;
}

// Writes the gradient in the costs, from the last row to the first.
template <class A>
__device__ __forceinline__ void sweep_backward(const Pair& pair, A& arithmetic, const Tiny<COST>& end, COST scale) {
  using Node = typename A::Node;
  using Weight = typename A::Weight;
  using Flow = typename A::Flow;
  const COST inverse = COST(1) / end.mantissa;
  Node below[COLUMNS];
  Weight raw[COLUMNS], raw_above[COLUMNS];
  Flow flow_below[COLUMNS];
  COST costs[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    below[c] = RESTRICTED && c == pair.item.m ? A::start() : A::nothing();
    flow_below[c] = A::no_flow();
  }
  pair.load_row(pair.item.n - 1, costs);
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) raw[c] = weight_inside(arithmetic, costs[c], pair.inside(pair.item.n - 1, c));
  for (int row = pair.item.n - 1; row >= 0; --row) {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) raw_above[c] = A::nothing_weighs();
    if (row > 0) {
      pair.load_row(row - 1, costs);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) raw_above[c] = weight_inside(arithmetic, costs[c], pair.inside(row - 1, c));
    }
    Node right = A::nothing(), diagonal = A::nothing();
    if (row == pair.item.n - 1 && (!RESTRICTED || pair.item.m == COLUMNS)) diagonal = A::start();
    Flow flow_right = A::no_flow(), flow_diagonal = A::no_flow();
    COST results[COLUMNS];
#pragma unroll
    for (int c = COLUMNS - 1; c >= 0; --c) {
      const bool inside = pair.inside(row, c);
      const A untouched = arithmetic;
      Weight before, weight = raw[c];
      if (SMOOTHING) {
        before = A::add(c > 0 ? raw_above[c - 1] : A::nothing_weighs(), raw_above[c], c > 0 ? raw[c - 1] : A::nothing_weighs());
        if (c == 0 && row == 0) before = A::weight_of(pair.problem.origin_count);
        weight = A::smoothed(weight, before);
      }
      Tiny<COST> sum;
      Node node = arithmetic.combine(diagonal, below[c], right, weight, sum);
      COST visits = arithmetic.visits(pair.kept_at(row, c), sum, end, inverse);
      if (!inside) {
        node = A::nothing();
        visits = COST(0);
        arithmetic = untouched;
      }
      diagonal = below[c];
      below[c] = right = node;
      COST result = visits;
      if (SMOOTHING) {
        result += A::shares(raw[c], flow_right, flow_below[c], flow_diagonal);
        flow_diagonal = flow_below[c];
        flow_below[c] = flow_right = inside ? A::flow(visits, before) : A::no_flow();
      }
      results[c] = result == COST(0) ? COST(0) : scale * result;
    }
    pair.store_row(row, results);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) raw[c] = raw_above[c];
  }
}

using Flat = Level<COST, WEAK, SMOOTHING, ORDER, COLUMNS>;
// Elsewhere registers do not suffice.
constexpr bool WITH_LEVEL = !(RESTRICTED && ORDER > 0 && SMOOTHING && WEAK && (COLUMNS > 8 || sizeof(COST) > 4));

__device__ __forceinline__ Survey<COST> survey_of(const Pair& pair) {
  Survey<COST> survey;
  constexpr int AT_ONCE = RESTRICTED ? 1 : 4;  // there, addresses take registers
#pragma unroll AT_ONCE
  for (int row = 0; row < pair.item.n; ++row) {
    COST costs[COLUMNS];
    pair.load_row(row, costs);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (pair.inside(row, c)) survey.add(costs[c]);
  }
  return survey;
}

// As the two sweeps above. Keeps sums and raw weights of the real cells for the gradient.
__device__ __forceinline__ COST level_forward(const Pair& pair, Flat& level) {
  Flat::Node above[COLUMNS + 1];
  COST raw_above[COLUMNS], sum, dummy, end = COST(0);
#pragma unroll
  for (int c = 0; c <= COLUMNS; ++c) above[c] = Flat::nothing();
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) raw_above[c] = COST(0);
  for (int row = 0; row < pair.item.n; ++row) {
    COST costs[COLUMNS];
    pair.load_row(row, costs);
    Flat::Node left = Flat::nothing(), diagonal = Flat::nothing();
    if (row == 0) diagonal = level.start(TinyBits<COST>::LEVEL_START);
    COST raw_left = COST(0), raw_diagonal = COST(0);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      const bool inside = pair.inside(row, c);
      const COST raw = inside ? level.weight(costs[c]) : COST(0);
      COST weight = raw;
      if (SMOOTHING) {
        COST before = raw_diagonal + raw_above[c] + raw_left;
        if (c == 0 && row == 0) before = level.origin;
        raw_diagonal = raw_above[c];
        raw_above[c] = raw_left = raw;
        weight = raw * before;
      }
      const Flat::Node node = level.combine(diagonal, above[c], left, weight, sum, dummy);
      if (inside) level.note(sum, dummy);
      else if (WEAK && c == pair.item.m) level.note_dummy(dummy);
      diagonal = above[c];
      above[c] = left = node;
      if (ORDER > 0) pair.kept_sum_at(row, c) = {sum, raw};
      if (!WEAK && (RESTRICTED ? c == pair.item.m - 1 : c == COLUMNS - 1)) end = node.n;
    }
    if (WEAK) {
      above[COLUMNS] = level.combine(diagonal, above[COLUMNS], left, COST(0), sum, dummy);
      if (!RESTRICTED || pair.item.m == COLUMNS) level.note_dummy(dummy);
    }
  }
  if (WEAK) {  // the last row of dummy cells
    Flat::Node left = Flat::nothing(), diagonal = Flat::nothing();
#pragma unroll
    for (int c = 0; c <= COLUMNS; ++c) {
      left = level.combine(diagonal, above[c], left, COST(0), sum, dummy);
      diagonal = above[c];
      if (!RESTRICTED || c <= pair.item.m) level.note_dummy(dummy);
      if (RESTRICTED ? c == pair.item.m : c == COLUMNS) end = dummy;
    }
  }
  return end;
}

// Returns the last sum.
__device__ __forceinline__ COST level_backward(const Pair& pair, Flat& level, const Flat::Node& start, COST scale) {
  Flat::Node below[COLUMNS];
  COST raw[COLUMNS], raw_above[COLUMNS], flow_below[COLUMNS], sum = COST(0), dummy;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    below[c] = RESTRICTED && c == pair.item.m ? start : Flat::nothing();
    flow_below[c] = COST(0);
    raw[c] = pair.kept_sum_at(pair.item.n - 1, c).raw;
  }
  for (int row = pair.item.n - 1; row >= 0; --row) {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) raw_above[c] = row > 0 ? pair.kept_sum_at(row - 1, c).raw : COST(0);
    Flat::Node right = Flat::nothing(), diagonal = Flat::nothing();
    if (row == pair.item.n - 1 && (!RESTRICTED || pair.item.m == COLUMNS)) diagonal = start;
    COST flow_right = COST(0), flow_diagonal = COST(0), results[COLUMNS];
#pragma unroll
    for (int c = COLUMNS - 1; c >= 0; --c) {
      const bool inside = pair.inside(row, c);
      COST before, weight = raw[c];
      if (SMOOTHING) {
        before = raw_above[c];
        if (c > 0) before += raw_above[c - 1] + raw[c - 1];
        if (c == 0 && row == 0) before = level.origin;
        weight *= before;
      }
      Flat::Node node = level.combine(diagonal, below[c], right, weight, sum, dummy);
      if (inside) level.note(sum, dummy);
      COST visits = pair.kept_sum_at(row, c).sum * node.n * level.inverse;
      if (!inside) {
        node = Flat::nothing();
        visits = COST(0);
      }
      diagonal = below[c];
      below[c] = right = node;
      COST result = visits;
      if (SMOOTHING) {
        result = Rate<COST>::multiply_add(raw[c], flow_right + flow_below[c] + flow_diagonal, visits);
        flow_diagonal = flow_below[c];
        flow_below[c] = flow_right = inside ? visits * reciprocal(before) : COST(0);
      }
      results[c] = scale * result;
    }
    pair.store_row(row, results);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) raw[c] = raw_above[c];
  }
  return sum;
}

__device__ __forceinline__ void fill(const Pair& pair, COST value) {
  for (int row = 0; row < pair.item.n; ++row) {
    COST values[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) values[c] = value;
    pair.store_row(row, values);
  }
}

// The status of an item of which some costs were taken for forbidden cells because they are large or not numbers.
__device__ __forceinline__ int status_of_costs(const Pair& pair, const Rate<COST>& rate, const Tiny<COST>& end) {
  int status = FINE;
  double largest_gain = 0;
#pragma unroll 1
  for (int row = 0; row < pair.item.n; ++row)
#pragma unroll 1
    for (int c = 0; c < pair.item.m; ++c) {
      if (!pair.inside(row, c)) continue;
      const COST cost = pair.cost[row * pair.problem.stride_row + c * pair.problem.stride_column];
      if (!(cost > -infinity<COST>())) return NOT_A_NUMBER;
      if (cost == infinity<COST>()) continue;
      const double power = -double(cost) * double(rate.scale);
      if (fabs(power) < TINY_EXPONENT_LIMIT - 1) largest_gain = max(largest_gain, power);
      else status |= power > 0 ? OUT_OF_RANGE : MASKED;
    }
  // As in numbers.cuh: what was taken for forbidden, for being large, must not matter. Smoothed costs gain twice.
  const double limit = TINY_EXPONENT_LIMIT / 4.0;
  if (status & MASKED && (end.mantissa == COST(0) || end.exponent < -limit || 2 * largest_gain * pair.cells() > limit))
    status |= OUT_OF_RANGE;
  return status;
}

__device__ __forceinline__ double log2_of(const Tiny<COST>& z) { return log2(double(z.mantissa)) + double(z.exponent); }

// A weak lattice has a term of the size of `dummy` in its value, of which rounding is a part: where real costs cancel it,
// its pair is not left to the other kernel. One in ten of a video and a text would be.
__device__ __forceinline__ bool is_imprecise(const Pair& pair, double& value, int cells, const Survey<COST>& survey, double rate) {
  if constexpr (MAY_WARP) {
    const double warp = pair.problem.warp_of(pair.item.pair);
    if (warp != 0) {
      const double before = value, depth = max(0.0, -double(survey.least) * rate);
      value -= (pair.item.n + pair.item.m) * warp;
      return is_near_zero_of_warped(value, before, pair.gamma, cells, depth, 0, pair.problem.single);
    }
  }
  const double size = WEAK ? max(fabs(value), fabs(pair.dummy)) : fabs(value);
  return is_near_zero<COST>(size * (LOG2_E / pair.gamma), cells);
}

// False where the numbers do not allow this arithmetic. `mark` where none of this kernel does.
__device__ __forceinline__ bool solve_level(const Pair& pair, const Rate<COST>& rate, const Survey<COST>& survey,
                                            int64 p, bool& mark) {
  Flat level(rate, pair.gamma, pair.dummy, pair.problem.origin_count, survey);
  if (!level.possible) return false;
  const COST end = level_forward(pair, level);
  if (!level.is_right(end)) return false;
#if WITH_ORDER == 0
  const double log2_z = level.log2_of(end, pair.item.n, pair.item.m);
  double value = -log2_z * LN_2 * pair.gamma;
  if (WEAK) value += pair.dummy * double(2 * (pair.item.n + pair.item.m) + 1);
  // Dummy cells have no weights here.
  mark = is_imprecise(pair, value, pair.item.n + pair.item.m, survey, rate.scale);
  if (!mark) static_cast<COST*>(pair.problem.value)[p] = COST(value);
#else
  const COST scale = static_cast<const COST*>(pair.problem.grad_value)[p * pair.problem.grad_value_stride];
  if (!(fabs(scale) < infinity<COST>())) return false;  // times a gradient of 0 it is not 0
  const Flat::Node start = level.reverse(end);
  if (!level.possible || !level.is_right(level_backward(pair, level, start, scale))) return false;
#endif
  return true;
}

// The same for the other arithmetics.
template <class A>
__device__ __forceinline__ bool solve(const Pair& pair, const Rate<COST>& rate, const Survey<COST>& survey, int64 p, bool& mark) {
  A arithmetic(rate, COST(pair.dummy), pair.problem.origin_count);
  if (arithmetic.has_failed()) return false;
  const Tiny<COST> end = sweep_forward(pair, arithmetic);
  if (arithmetic.has_failed()) return false;
  const int status = arithmetic.beyond ? status_of_costs(pair, rate, end) : FINE;
  const bool bad = status & NOT_A_NUMBER, none = end.mantissa == COST(0);
  mark = status & OUT_OF_RANGE;
#if WITH_ORDER == 0
  double value = bad ? not_a_number() : infinity<double>();
  if (!bad && !none) {
    value = -log2_of(end) * LN_2 * pair.gamma;
    mark = is_imprecise(pair, value, pair.cells(), survey, rate.scale) || mark;
  }
  if (!mark) static_cast<COST*>(pair.problem.value)[p] = COST(value);
#else
  const COST scale = static_cast<const COST*>(pair.problem.grad_value)[p * pair.problem.grad_value_stride];
  if (bad || none) {
    if (!mark) fill(pair, bad ? COST(not_a_number()) : COST(0));
  } else if (!mark) {
    sweep_backward(pair, arithmetic, end, scale);
    if (arithmetic.has_failed()) return false;
  }
#endif
  return true;
}

extern "C" __global__ void __launch_bounds__(THREADS) tiny(const __grid_constant__ TinyProblem problem) {
  const int64 threads = int64(gridDim.x) * THREADS;
  for (int64 p = int64(blockIdx.x) * THREADS + threadIdx.x; p < problem.pairs; p += threads) {
    const Pair pair(problem, p);
    const Rate<COST> rate(pair.gamma);
    // Costs of 0 for gamma 0 and the like; what they are is for the other kernel to say.
    bool mark = pair.item.status != FINE || !is_gamma(pair.gamma) ||
                !(rate.scale > COST(0) && rate.scale < COST(1e30)) ||
                !(fabs(pair.dummy) * double(rate.scale) < TINY_EXPONENT_LIMIT - 1) ||
                !(problem.origin_count > 1e-30 && problem.origin_count < 1e30);
    if (!mark) {
      bool done = false, compact = WEAK;
      Survey<COST> survey;
      if constexpr (WITH_LEVEL) {
        survey = survey_of(pair);
        done = solve_level(pair, rate, survey, p, mark);
        compact = WEAK && survey.within(rate.scale, TinyBits<COST>::COMPACT_LIMIT);
      }
      if constexpr (WEAK)
        if (!done && compact) done = solve<Compact<COST, COLUMNS>>(pair, rate, survey, p, mark);
      if (!done) solve<General<COST, WEAK>>(pair, rate, survey, p, mark);
    }
    if (mark) problem.marked[atomic_add(problem.marked_count, 1)] = p;
  }
}
