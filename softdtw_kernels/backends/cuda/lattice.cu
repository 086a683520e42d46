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
#include "strip.cuh"

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

struct NoWait {
  __device__ void operator()(int) const {}
};

struct AwaitRows {
  const int* progress;
  __device__ void operator()(int rows) const {
    while (load_acquire(progress) < rows) pause_while_polling();
  }
};

struct PublishRows {
  int* progress;
  __device__ void operator()(int rows) const { store_release(progress, rows); }
};

__device__ int any_lane(int status) {
  int all = 0;
  for (int bit = NOT_A_NUMBER; bit <= NO_PATH; bit *= 2)
    if (__any_sync(FULL_WARP, status & bit)) all |= bit;
  return all;
}

// After the last strip: Z of the end cell from the lane that has it. Adds NO_PATH to the status.
__device__ void write_value(const Problem& problem, TheStrip& strip) {
  TheStrip::N end = TheStrip::nothing();
  int column = (strip.item.m - 1) % TheStrip::WIDTH, owner = column / COLUMNS;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
    if (c == column % COLUMNS) end = strip.above[c];
  end = from_lane(end, owner);
  if (Arithmetic::is_zero(end.z)) strip.status |= NO_PATH;
  // What is out of range is not known to have no path.
  if (strip.status & OUT_OF_RANGE) strip.status &= ~NO_PATH;
  if (strip.lane != 0 || strip.status & OUT_OF_RANGE) return;
  int64 p = strip.item.pair;
  bool bad = strip.status & NOT_A_NUMBER, none = strip.status & NO_PATH;
  if (problem.value) {
    double value = bad ? not_a_number() : none ? infinity<double>() : strip.arithmetic.value(end.z, strip.gamma);
    static_cast<COST*>(problem.value)[p] = COST(value);
  }
#if WITH_ORDER == 2
  {
    double value = end.tangent;
    if (strip.tangent_ratio != 0) value += strip.tangent_ratio * strip.arithmetic.value(end.z, strip.gamma);
    static_cast<COST*>(problem.tangent_value)[p] = COST(bad ? not_a_number() : none ? 0.0 : value);
  }
#endif
}

#if WITH_ORDER > 0
// The sums of one strip over its lanes, times grad_value.
__device__ void write_sums(const Problem& problem, const TheStrip& strip, const TheStrip::Sums& sums, double scale) {
  double dummy = warp_sum(sums.dummy), in_gamma;
  if (TANGENT) {
    // The derivatives are homogeneous too: cost . H_cost + dummy H_dummy + gamma H_gamma = 0.
    double weighted = warp_sum(sums.weighted) + (WEAK ? dummy * strip.dummy : 0.0);
    in_gamma = strip.gamma > 0 ? -weighted / strip.gamma : 0.0;
  } else {
    in_gamma = -warp_sum(sums.entropy);
  }
  if (strip.lane != 0) return;
  bool bad = strip.status & NOT_A_NUMBER;
  int64 place = strip.item.pair * problem.parts + strip.index;
  if (problem.grad_gamma) problem.grad_gamma[place] = bad ? not_a_number() : in_gamma == 0 ? 0.0 : scale * in_gamma;
  if (problem.grad_dummy) problem.grad_dummy[place] = bad ? not_a_number() : dummy == 0 ? 0.0 : scale * dummy;
}

template <class Await, class Publish>
__device__ void backward(const Problem& problem, TheStrip& strip, Await await, Publish publish) {
  COST scale = static_cast<const COST*>(problem.grad_value)[strip.item.pair * problem.grad_value_stride];
  TheStrip::Sums sums = strip.backward(scale, problem.grad_gamma != nullptr, await, publish);
  write_sums(problem, strip, sums, double(scale));
}
#endif

__device__ void whole_items(const Problem& problem, int64 warp, int warp_in_block, int64 warps) {
  for (int64 p = warp; p < problem.pairs; p += warps) {
    if (WIDE && (problem.status[p] & (OUT_OF_RANGE | NOT_A_NUMBER)) != OUT_OF_RANGE) continue;
    Item<WEAK> item(problem, p);
    TheStrip strip(problem, item, warp, warp_in_block, warp);
    for (int s = 0; s < strip.strips; ++s) {
      strip.select(s);
      strip.forward(NoWait(), NoWait());
      __syncwarp();  // borders and checkpoints are read by other lanes than wrote them
    }
    strip.status = any_lane(strip.status);
    write_value(problem, strip);
    if (!WIDE && strip.lane == 0) problem.status[p] = strip.status;
#if WITH_ORDER > 0
    if (strip.status & OUT_OF_RANGE) continue;
    for (int s = strip.strips - 1; s >= 0; --s) {
      strip.select(s);
      backward(problem, strip, NoWait(), NoWait());
      __syncwarp();
    }
#endif
  }
}

__device__ void strip_by_strip(const Problem& problem, int64 warp, int warp_in_block) {
  const int lane = threadIdx.x % LANES;
  const int64 tickets = problem.pairs * problem.strips;
  for (;;) {
    int ticket = lane == 0 ? atomic_add(problem.ticket, 1) : 0;
    ticket = from_lane(ticket, 0);
    if (ticket >= tickets) return;
    int64 p = ticket % problem.pairs;
    int s = int(ticket / problem.pairs);
    if (problem.phases == BACKWARD) s = int(problem.strips) - 1 - s;
    Item<WEAK> item(problem, p);
    TheStrip strip(problem, item, p, warp_in_block, warp);
    if (s >= strip.strips) continue;  // shorter than the longest item
    strip.select(s);
    int* progress = problem.progress + p * problem.strips + s;
    const int rows = strip.last - strip.first;
    if (problem.phases == FORWARD) {
      strip.forward(AwaitRows{progress - 1}, PublishRows{progress});
      strip.status = any_lane(strip.status);
      if (lane == 0 && strip.status) atomic_or(problem.status + p, strip.status);
      // The last strip must know the status of all: each waits for its predecessor to have ended altogether.
      if (s > 0) AwaitRows{progress - 1}(strip.last_row_of(s - 1) - strip.first_row_of(s - 1) + 1);
      if (s + 1 == strip.strips) {
        strip.status |= load_acquire(problem.status + p);
        write_value(problem, strip);
        if (lane == 0 && strip.status & NO_PATH) atomic_or(problem.status + p, NO_PATH);
      }
      __syncwarp();
      if (lane == LANES - 1) store_release(progress, rows + 1);
    } else {
#if WITH_ORDER > 0
      strip.status = problem.status[p];
      if (strip.status & OUT_OF_RANGE) continue;
      backward(problem, strip, AwaitRows{progress + 1}, PublishRows{progress});
      __syncwarp();
      if (lane == 0) store_release(progress, rows);
#endif
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) lattice(SOFTDTW_PARAMETERS) {
  const Problem problem = {SOFTDTW_VALUES};
  const int warp_in_block = threadIdx.x / LANES, warps_in_block = blockDim.x / LANES;
  const int64 warp = int64(blockIdx.x) * warps_in_block + warp_in_block;
  if (problem.ticket) {
    strip_by_strip(problem, warp, warp_in_block);
  } else {
    whole_items(problem, warp, warp_in_block, int64(gridDim.x) * warps_in_block);
  }
}
