// The value of alignment problems and their gradient, for batches large enough that a warp has whole items.
//
// Compiled once with WITH_ORDER 0, for values, and once with 1, for gradients.
//
// What it can't do, forbidden cells, NaN, gamma = 0 and numbers beyond any range, it leaves to the launch of lattice.cu that
// follows it (LEFT), and values near zero, whose digits cancel (VALUE_LEFT). A gradient goes forward, then backward, or
// backward alone, from the state that the launch of a value left: borders, checkpoints, where Long began, and the status.
#include "sweeps.cuh"
#include "tiles.cuh"

typedef Tiles<2, 8> TheTiles;  // as in fixed.py
static_assert(sizeof(LongWord) == 8, "the host makes room for it");

__device__ __forceinline__ int forward(const Problem& problem, TheTiles& tiles) {
  const double gamma = problem.gamma_of(tiles.item.pair);
  bool done = tiles.item.status == FINE && is_gamma(gamma) && gamma > 0 && tiles.scale.is_usable();
  int64 sum = 0;
#pragma unroll 1
  for (int s = 0; s < tiles.strips && done; ++s) done = tiles.forward(s, sum);
  if (!done) return LEFT;
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    sum += shuffle_words(sum, [offset](unsigned w) { return __shfl_xor_sync(FULL_WARP, w, offset); });
  if (problem.value && tiles.lane == 0) static_cast<float*>(problem.value)[tiles.item.pair] = float(tiles.scale.value(sum));
  return problem.value && is_near_zero(sum, tiles.n + tiles.m) ? VALUE_LEFT : FINE;
}

#if WITH_ORDER > 0
__device__ __forceinline__ void backward(const Problem& problem, TheTiles& tiles) {
  const int64 p = tiles.item.pair;
  const float factor = static_cast<const float*>(problem.grad_value)[p * problem.grad_value_stride];
  const bool with_entropy = problem.grad_gamma != nullptr;
#pragma unroll 1
  for (int s = tiles.strips - 1; s >= 0; --s) {
    double entropy = 0;
    tiles.backward(s, factor, with_entropy, entropy);
    if (!with_entropy) continue;
    const double in_gamma = -warp_sum(entropy);
    if (tiles.lane == 0) problem.grad_gamma[p * problem.parts + s] = in_gamma == 0 ? 0.0 : double(factor) * in_gamma;
  }
}
#endif

// Blocks of a warp that run beside each other on a multiprocessor, as fixed.py counts on.
extern "C" __global__ void __launch_bounds__(32, WITH_ORDER ? 8 : 12) fixed(const __grid_constant__ Problem problem) {
  DYNAMIC_SHARED(shared);
  for (int64 p = blockIdx.x; p < problem.pairs; p += gridDim.x) {
    const Item<false> item(problem, p);
    TheTiles tiles(problem, item, blockIdx.x, shared);
    int status = problem.phases & FORWARD ? forward(problem, tiles) : problem.status[p];
    __syncwarp();
    if (problem.phases & FORWARD && tiles.lane == 0) problem.status[p] = status;
#if WITH_ORDER > 0
    if (problem.phases & BACKWARD && !(status & LEFT)) backward(problem, tiles);
#endif
    __syncwarp();
  }
}
