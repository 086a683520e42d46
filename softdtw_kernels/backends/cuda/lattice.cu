// The value of an alignment problem, its gradient, or the product of its Hessian with a direction.
//
// Compiled once for each combination of
//   WITH_COST     float or double, the dtype of the cost
//   WITH_WIDE     0: fast arithmetic; marks the items beyond its range. 1: does the marked items, after the launch with 0
//   WITH_COLUMNS  columns a lane
//   WITH_WEAK     1: the weak lattice with dummy cells, which is never stored
//   WITH_ORDER    0: value; 1: gradient; 2: Hessian product
//
// Work is shared out in one of two ways, by the host's choice of arguments:
//   ticket null   a warp takes whole items, strip after strip, forward then backward, with scratch memory of its own
//   ticket set    a warp takes one strip at a time, waiting for the rows it needs of the strip before it; FORWARD and
//                 BACKWARD are then launches of their own. A strip's predecessor has a lower ticket, so a warp only
//                 ever waits for one that runs already: nothing is assumed about how many blocks are resident.
#include "sweeps.cuh"

typedef WITH_COST COST;
constexpr int COLUMNS = WITH_COLUMNS;
constexpr bool WIDE = WITH_WIDE, WEAK = WITH_WEAK, TANGENT = WITH_ORDER == 2;
#if WITH_WIDE
typedef Wide<COST> Arithmetic;
#else
typedef Scaled<COST> Arithmetic;
#endif
typedef Strip<Arithmetic, COLUMNS, WEAK, TANGENT> TheStrip;

// The host makes room for these.
static_assert(sizeof(TheStrip::N) == WITH_NODE_BYTES && sizeof(TheStrip::F) == WITH_FLOW_BYTES, "");

// The next work of this warp; false when there is none.
__device__ __forceinline__ bool next_work(const Problem& problem, Work& work, int64 warps, int lane) {
  if (!problem.ticket) return work.take_item(problem, work.pair + warps);
  int ticket = lane == 0 ? atomic_add(problem.ticket, 1) : 0;
  return work.take_strip(problem, from_lane(ticket, 0));
}

__device__ __forceinline__ void forward(const Problem& problem, TheStrip& strip, const Work& work) {
  const int64 p = work.pair;
  for (int s = work.strip; s < min(work.end, strip.strips); ++s) {
    int* progress = problem.ticket ? problem.progress + p * problem.strips + s : nullptr;
    AwaitRows left{progress && s > 0 ? progress - 1 : nullptr};
    strip.select(s);
    strip.forward(left, PublishRows{progress});
    finish_forward<WIDE>(problem, strip, left, progress);
  }
}

#if WITH_ORDER > 0
__device__ __forceinline__ void backward(const Problem& problem, TheStrip& strip, const Work& work) {
  const int64 p = work.pair;
  if (problem.ticket) strip.status = problem.status[p];
  if (strip.status & OUT_OF_RANGE) return;
  const COST scale = static_cast<const COST*>(problem.grad_value)[p * problem.grad_value_stride];
  for (int s = min(work.end, strip.strips) - 1; s >= work.strip; --s) {
    int* progress = problem.ticket ? problem.progress + p * problem.strips + s : nullptr;
    AwaitRows right{progress && s + 1 < strip.strips ? progress + 1 : nullptr};
    strip.select(s);
    TheStrip::Sums sums = strip.backward(scale, problem.grad_gamma != nullptr, right, PublishRows{progress});
    write_sums(problem, strip, sums, double(scale));
    __syncwarp();
    if (strip.lane == 0) PublishRows{progress}(strip.last - strip.first);
  }
}
#endif

extern "C" __global__ void __launch_bounds__(64) lattice(SOFTDTW_PARAMETERS(SOFTDTW_LATTICE_FIELDS)) {
  const Problem problem = {SOFTDTW_VALUES(SOFTDTW_LATTICE_FIELDS)};
  const int lane = threadIdx.x % LANES, warp_in_block = threadIdx.x / LANES, warps_in_block = blockDim.x / LANES;
  const int64 warp = int64(blockIdx.x) * warps_in_block + warp_in_block;
  const int64 warps = int64(gridDim.x) * warps_in_block;
  Work work = {warp - warps, 0, 0};
  while (next_work(problem, work, warps, lane)) {
    // A launch of the wide arithmetic follows every other and does what that one marked, mostly nothing.
    if (WIDE && (problem.status[work.pair] & (OUT_OF_RANGE | NOT_A_NUMBER)) != OUT_OF_RANGE) continue;
    const Item<WEAK> item(problem, work.pair);
    TheStrip strip(problem, item, problem.ticket ? work.pair : warp, warp_in_block, warp);
    if (work.strip >= strip.strips) continue;  // the item is shorter than others
    if (problem.phases & FORWARD) forward(problem, strip, work);
#if WITH_ORDER > 0
    if (problem.phases & BACKWARD) backward(problem, strip, work);
#endif
  }
}
