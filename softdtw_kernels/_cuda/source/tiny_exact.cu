// The items that tiny.cu leaves: any costs, gamma = 0, values near 0 that want every digit, and what is out of range and
// becomes NaN. A thread does a whole item, cell by cell, in the wide arithmetic of numbers.cuh; its state lies in global
// memory. Smoothed costs are formed on the fly, in float64.
//
// Compiled once for each combination of
//   WITH_COST       float or double, the dtype of the cost
//   WITH_WEAK       1: the weak lattice with dummy cells
//   WITH_SMOOTHING  1: costs are smoothed locally first
//   WITH_ORDER      0: value; 1: gradient
#include "lattices.cuh"

#define SOFTDTW_TINY_EXACT_FIELDS(X)                                                     \
  X(double, origin_count)                                                                \
  X(const void*, grad_value)                                                             \
  X(int64, grad_value_stride)                                                            \
  X(void*, value)              /* out */                                                 \
  X(void*, grad_cost)          /* out, shaped like the cost */                           \
  X(double*, scratch)          /* (doubles of a thread, threads of the grid) */          \
  X(const int64*, marked)                                                                \
  X(const int*, marked_count)

typedef WITH_COST COST;
constexpr bool WEAK = WITH_WEAK, SMOOTHING = WITH_SMOOTHING;
typedef Lattice<WEAK> TheLattice;
constexpr bool MAY_WARP = !WEAK && !SMOOTHING && sizeof(COST) == 8;
constexpr int ORDER = WITH_ORDER;
typedef Wide<COST> Arithmetic;
typedef Arithmetic::Number Number;

struct TinyExactProblem : Batch {
  SOFTDTW_TINY_EXACT_FIELDS(SOFTDTW_FIELD)
};

constexpr int DOUBLES_OF_NUMBER = 3;

// An array in scratch memory: neighboring threads have neighboring elements.
struct Scratch {
  double* first;
  int64 stride;
  __device__ __forceinline__ double& operator[](int k) const { return first[k * stride]; }
  __device__ __forceinline__ Scratch from(int k) const { return {first + k * stride, stride}; }

  __device__ __forceinline__ Number number(int k) const {
    const Scratch here = from(k * DOUBLES_OF_NUMBER);
    return Arithmetic::number_of({here[0], here[1], here[2]});
  }
  __device__ __forceinline__ void set_number(int k, const Number& r) const {
    const Scratch here = from(k * DOUBLES_OF_NUMBER);
    here[0] = r.high;
    here[1] = r.middle;
    here[2] = r.low;
  }
};

struct ExactPair {
  const TinyExactProblem& problem;
  Item<false> item;
  const COST* cost;
  double gamma, dummy;

  __device__ __forceinline__ ExactPair(const TinyExactProblem& problem, int64 p)
      : problem(problem), item(problem, p), gamma(problem.gamma_of(p)), dummy(WEAK ? problem.dummy_of(p) : 0.0) {
    cost = static_cast<const COST*>(problem.cost) + problem.cost_offset(p);
  }

  __device__ __forceinline__ int rows() const { return TheLattice::size_of(item.n); }  // of the lattice
  __device__ __forceinline__ int columns() const { return TheLattice::size_of(item.m); }

  __device__ __forceinline__ double raw(int row, int column) const {
    if (row < 0 || column < 0 || !item.in_band(row, column)) return infinity<double>();
    const int64 place = row * problem.stride_row + column * problem.stride_column;
    if (MAY_WARP && problem.single) return double(static_cast<const float*>(problem.cost)[problem.cost_offset(item.pair) + place]);
    return double(cost[place]);
  }

  // The costs of the three predecessors: diagonal, up, left; +inf outside.
  __device__ __forceinline__ void predecessors(int row, int column, double (&x)[3]) const {
    for (int k = 0; k < 3; ++k) x[k] = raw(row - (k != 2), column - (k != 1));
  }

  // Derivative of the softmin of x in x[which]; at gamma = 0 the first of equal ones.
  __device__ __forceinline__ double share(const double (&x)[3], int which) const {
    const double smallest = fmin(fmin(x[0], x[1]), x[2]);
    if (!(x[which] < infinity<double>())) return 0.0;
    if (!(gamma > 0)) return x[which] == smallest && !(which > 0 && x[0] == smallest) && !(which > 1 && x[1] == smallest);
    return exp((smallest - x[which]) / gamma) / (1.0 + others_of(x, smallest));
  }

  // The sum of the weights but for the smallest one's, which is 1.
  __device__ __forceinline__ double others_of(const double (&x)[3], double smallest) const {
    double sum = 0;
    bool skipped = false;
    for (int k = 0; k < 3; ++k) {
      if (!skipped && x[k] == smallest) skipped = true;
      else if (x[k] < infinity<double>()) sum += exp((smallest - x[k]) / gamma);
    }
    return sum;
  }

  __device__ __forceinline__ double smoothed(int row, int column) const {
    const double here = raw(row, column);
    if (!SMOOTHING) return here;
    if (row == 0 && column == 0) return here - gamma * log(problem.origin_count);
    double x[3];
    predecessors(row, column, x);
    if (x[0] != x[0] || x[1] != x[1] || x[2] != x[2]) return not_a_number();
    const double smallest = fmin(fmin(x[0], x[1]), x[2]);
    if (smallest == infinity<double>() || !(gamma > 0)) return here + smallest;
    return here + (smallest - gamma * log1p(others_of(x, smallest)));
  }
};

// Z of the end cell, and into `p` the transition probabilities of every cell of the lattice.
__device__ __forceinline__ Number sweep_forward(const ExactPair& pair, Arithmetic& arithmetic, const Scratch& above,
                                                const Scratch& p, int& status) {
  Number left = Arithmetic::zero();
  Arithmetic::Weight dummy = arithmetic.weight(pair.dummy, status);
  for (int c = 0; c < pair.columns(); ++c) above.set_number(c, Arithmetic::zero());
  for (int row = 0; row < pair.rows(); ++row) {
    Number diagonal = row == 0 ? arithmetic.one() : Arithmetic::zero();
    left = Arithmetic::zero();
    for (int c = 0; c < pair.columns(); ++c) {
      const Number up = above.number(c);
      const bool is_dummy = TheLattice::is_dummy(row, c);
      const Arithmetic::Weight weight =
          is_dummy ? dummy : arithmetic.weight(pair.smoothed(TheLattice::of_cost(row), TheLattice::of_cost(c)), status);
      Transition<double> transition;
      left = arithmetic.combine(diagonal, up, left, weight, transition, ORDER > 0);
      if (ORDER > 0) {
        const Scratch here = p.from((row * pair.columns() + c) * 3);
        here[0] = transition.diagonal;
        here[1] = transition.up;
        here[2] = transition.left;
      }
      above.set_number(c, left);
      diagonal = up;
    }
  }
  return left;
}

// Into `result` the gradient in the costs. `here` and `over` take what flows into each column of a row and the next.
__device__ __forceinline__ void sweep_backward(const ExactPair& pair, Scratch here, Scratch over, const Scratch& p,
                                               const Scratch& result) {
  const int columns = pair.columns();
  for (int k = 0; k < pair.item.n * pair.item.m; ++k) result[k] = 0;
  for (int c = 0; c < columns; ++c) here[c] = c == columns - 1;
  for (int row = pair.rows() - 1; row >= 0; --row) {
    for (int c = 0; c < columns; ++c) over[c] = 0;
    for (int c = columns - 1; c >= 0; --c) {
      const double visits = here[c];
      if (visits == 0) continue;
      const Scratch transition = p.from((row * columns + c) * 3);
      over[c] += visits * transition[1];
      if (c > 0) {
        over[c - 1] += visits * transition[0];
        here[c - 1] += visits * transition[2];
      }
      if (TheLattice::is_dummy(row, c)) continue;
      const int i = TheLattice::of_cost(row), j = TheLattice::of_cost(c);
      result[i * pair.item.m + j] += visits;
      if (!SMOOTHING || (i == 0 && j == 0)) continue;
      double x[3];
      pair.predecessors(i, j, x);
      for (int k = 0; k < 3; ++k) {
        const double share = pair.share(x, k);
        if (share > 0) result[(i - (k != 2)) * pair.item.m + j - (k != 1)] += visits * share;
      }
    }
    const Scratch swapped = here;
    here = over;
    over = swapped;
  }
}

extern "C" __global__ void __launch_bounds__(32) tiny_exact(const __grid_constant__ TinyExactProblem problem) {
  const int64 thread = int64(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64(gridDim.x) * blockDim.x;
  const int count = *problem.marked_count;
  const int most = int(TheLattice::size_of(problem.columns));
  // As the host counts them.
  const Scratch above = {problem.scratch + thread, threads};
  const Scratch flows = above.from(most * DOUBLES_OF_NUMBER), result = flows.from(2 * most);
  const Scratch p = result.from(int(problem.rows * problem.columns));
  for (int64 k = thread; k < count; k += threads) {
    const ExactPair pair(problem, problem.marked[k]);
    Arithmetic arithmetic;
    int status = pair.item.status | arithmetic.start(pair.gamma);
    if (MAY_WARP) arithmetic.start_warped(problem.warp_of(pair.item.pair), pair.gamma, 0, problem.single);
    if (WEAK && !(fabs(pair.dummy) < infinity<double>())) status |= NOT_A_NUMBER;
    Number end = Arithmetic::zero();
    if (status == FINE) end = sweep_forward(pair, arithmetic, above, p, status);
    bool bad = status & NOT_A_NUMBER;
    const bool none = Arithmetic::is_zero(end);
#if WITH_ORDER == 0
    const double value = bad    ? not_a_number()
                         : none ? infinity<double>()
                                : arithmetic.value(end, pair.gamma, pair.rows() + pair.columns());
    static_cast<COST*>(problem.value)[pair.item.pair] = COST(value);
#else
    bad = bad || Arithmetic::is_endless(end);  // a value like others, which has no derivatives
    const COST scale = static_cast<const COST*>(problem.grad_value)[pair.item.pair * problem.grad_value_stride];
    COST* out = static_cast<COST*>(problem.grad_cost) + problem.dense_offset(pair.item.pair);
    if (!bad && !none) sweep_backward(pair, flows, flows.from(most), p, result);
    for (int i = 0; i < pair.item.n; ++i)
      for (int j = 0; j < pair.item.m; ++j) {
        if (!pair.item.in_band(i, j)) continue;
        const COST visits = none ? COST(0) : COST(result[i * pair.item.m + j]);
        out[i * problem.dense_row + j * problem.dense_column] =
            bad ? COST(not_a_number()) : visits == COST(0) ? COST(0) : scale * visits;
      }
#endif
  }
}
