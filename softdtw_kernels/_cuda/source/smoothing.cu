// Local smoothing of S2DTW (Ko et al. 2022): s[i, j] = cost[i, j] + softmin over the costs of the predecessors
// (i-1, j-1), (i-1, j), (i, j-1) inside the matrix; at the origin + softmin of `origin_count` zeros. And its gradient.
//
// A thread a cell; a block does a part of one item. Compiled for each combination of
//   WITH_COST   float or double
//   WITH_ORDER  0: s; 1: the gradient of <grad_s, s> in cost and gamma
#include "lattices.cuh"

#define SOFTDTW_SMOOTHING_FIELDS(X)                                                            \
  X(double, origin_count)                                                                      \
  X(const void*, grad_s)    /* shaped like the cost */                                         \
  X(void*, out)             /* shaped like the cost: s, or the gradient in the cost */         \
  X(double*, grad_gamma)    /* out, (pairs, parts): one part a block */                        \
  X(int64, parts)           /* blocks an item */

typedef WITH_COST COST;

struct Smoothing : Batch {
  SOFTDTW_SMOOTHING_FIELDS(SOFTDTW_FIELD)
};

// The softmin of the predecessors of a cell other than the origin.
struct Predecessors {
  COST diagonal, up, left;  // their costs, +inf outside
  COST smallest, others;    // sum of exp((smallest - x) / gamma), but for the smallest one's 1

  __device__ __forceinline__ Predecessors(const COST* cost, const Smoothing& problem, int row, int column, COST gamma) {
    const COST outside = infinity<COST>();
    const COST* here = cost + (row * problem.stride_row + column * problem.stride_column);
    diagonal = row > 0 && column > 0 ? here[-problem.stride_row - problem.stride_column] : outside;
    up = row > 0 ? here[-problem.stride_row] : outside;
    left = column > 0 ? here[-problem.stride_column] : outside;
    smallest = min(min(diagonal, up), left);
    const bool is_diagonal = diagonal == smallest, is_up = !is_diagonal && up == smallest;
    others = (is_diagonal ? COST(0) : weight(diagonal, gamma)) + (is_up ? COST(0) : weight(up, gamma)) +
             (is_diagonal || is_up ? weight(left, gamma) : COST(0));
  }

  __device__ __forceinline__ COST weight(COST x, COST gamma) const {
    if (x == infinity<COST>()) return COST(0);
    return gamma > COST(0) ? exp((smallest - x) / gamma) : COST(0);
  }

  __device__ __forceinline__ COST softmin(COST gamma) const {
    if (diagonal != diagonal || up != up || left != left) return COST(not_a_number());
    if (smallest == infinity<COST>() || !(gamma > COST(0))) return smallest;
    return smallest - gamma * log1p(others);
  }

  // Derivative of the softmin in one of the three; at gamma = 0 the first of equal ones, in the order of the members.
  __device__ __forceinline__ COST share(int which, COST gamma) const {
    COST x = which == 0 ? diagonal : which == 1 ? up : left;
    if (smallest == infinity<COST>()) return COST(0);
    if (gamma > COST(0)) return weight(x, gamma) / (COST(1) + others);
    bool is_first = x == smallest && !(which > 0 && diagonal == smallest) && !(which > 1 && up == smallest);
    return is_first ? COST(1) : COST(0);
  }

  // Minus the derivative in gamma: the entropy of the shares.
  __device__ __forceinline__ double entropy(COST gamma) const {
    if (!(gamma > COST(0)) || smallest == infinity<COST>()) return 0;
    // -log(p) is log(1 + others), and the distance to the smallest over gamma.
    COST total = log1p(others);
    for (int which = 0; which < 3; ++which) {
      const COST p = share(which, gamma), x = which == 0 ? diagonal : which == 1 ? up : left;
      if (p > COST(0)) total += p * ((x - smallest) / gamma);
    }
    return double(total);
  }
};

__device__ __forceinline__ void smooth_part(const Smoothing& problem) {
  const int64 p = blockIdx.x / problem.parts;
  const int part = int(blockIdx.x % problem.parts);
  const Item<false> item(problem, p);
  const double gamma_here = problem.gamma_of(p);
  const COST gamma = COST(gamma_here);
  const bool bad = item.status != FINE || !is_gamma(gamma_here);
  const COST* cost = static_cast<const COST*>(problem.cost) + problem.cost_offset(p);
  const int64 cells = problem.rows * problem.columns, offset = problem.dense_offset(p);
  COST* out = static_cast<COST*>(problem.out) + offset;
#if WITH_ORDER == 1
  double in_gamma = 0;
#endif
  for (int64 cell = int64(part) * blockDim.x + threadIdx.x; cell < cells; cell += problem.parts * blockDim.x) {
    const int row = int(cell / problem.columns), column = int(cell % problem.columns);
    const int64 place = row * problem.dense_row + column * problem.dense_column;
    COST result = COST(0);
    if (row < item.n && column < item.m) {
#if WITH_ORDER == 0
      const COST here = cost[row * problem.stride_row + column * problem.stride_column];
      const bool origin = row == 0 && column == 0;
      const COST zeros = COST(-gamma_here * log(problem.origin_count));
      result = here + (origin ? zeros : Predecessors(cost, problem, row, column, gamma).softmin(gamma));
#else
      const COST* grad_s = static_cast<const COST*>(problem.grad_s) + offset;
      result = grad_s[place];
      if (result != COST(0)) {
        const double slope = row == 0 && column == 0 ? log(problem.origin_count)
                                                     : Predecessors(cost, problem, row, column, gamma).entropy(gamma);
        if (slope != 0) in_gamma -= double(result) * slope;  // not inf times 0
      }
      for (int which = 0; which < 3; ++which) {  // the successor whose predecessor `which` this cell is
        const int below = row + (which != 2), right = column + (which != 1);
        if (below >= item.n || right >= item.m) continue;
        const COST flow = grad_s[below * problem.dense_row + right * problem.dense_column];
        if (flow == COST(0)) continue;
        const COST share = Predecessors(cost, problem, below, right, gamma).share(which, gamma);
        if (share != COST(0)) result += flow * share;
      }
#endif
      if (bad) result = COST(not_a_number());
    }
    out[place] = result;
  }
#if WITH_ORDER == 1
  // Over the block, in a fixed order.
  DYNAMIC_SHARED(shared);
  double* sums = reinterpret_cast<double*>(shared);
  in_gamma = warp_sum(in_gamma);
  if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = in_gamma;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int warp = 0; warp < int(blockDim.x) / LANES; ++warp) total += sums[warp];
    problem.grad_gamma[p * problem.parts + part] = bad ? not_a_number() : total;
  }
#endif
}

extern "C" __global__ void __launch_bounds__(128) smoothing(const __grid_constant__ Smoothing problem) {
  smooth_part(problem);
}
