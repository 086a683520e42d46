// The value of an alignment problem, its gradient, or the product of its Hessian with a direction.
//
// Compiled once for each combination of
//   WITH_COST     float or double, the dtype of the cost
//   WITH_WIDE     0: fast arithmetic; marks the items beyond its range. 1: does the marked items, after the launch with 0
//   WITH_COLUMNS  columns a lane
//   WITH_WEAK     1: the weak lattice with dummy cells, which is never stored
//   WITH_ORDER    0: value; 1: gradient; 2: Hessian product
//
// Work is shared out in one of three ways, by the host's choice of arguments:
//   warp    ticket null, team 1: a warp takes whole items, strip after strip, forward then backward, with scratch memory
//           of its own
//   block   ticket null, team W: the W warps of a block take an item together, warp w its strips w, w + W and so on,
//           forward then backward. A strip waits for its neighbor by a flag in shared memory. Each warp does its strips
//           in the order in which they wait for each other, and all warps of a block run: so no wait lasts for ever.
//   long    ticket set: a warp takes one strip at a time, waiting for the rows it needs of the strip before it; FORWARD
//           and BACKWARD are then launches of their own. A strip's predecessor has a lower ticket, so a warp only ever
//           waits for one that runs already: nothing is assumed about how many blocks are resident.
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

// The progress of a strip that another warp may wait for; of nobody (null) where one warp does all strips of an item.
struct Flag {
  int* rows;
  bool in_block;  // in shared memory

  __device__ __forceinline__ int read() const { return in_block ? load_acquire_in_block(rows) : load_acquire(rows); }
  __device__ __forceinline__ void write(int done) const {
    if (in_block) store_release_in_block(rows, done);
    else store_release(rows, done);
  }
};

struct AwaitRows {
  Flag flag;
  int seen = 0;  // of the last look, which often is enough for several chunks

  __device__ __forceinline__ void operator()(int rows) {
    if (!flag.rows) return;
    while (seen < rows && (seen = flag.read()) < rows) pause_while_polling();
  }
};

struct PublishRows {
  Flag flag;
  __device__ __forceinline__ void operator()(int rows) const {
    if (flag.rows) flag.write(rows);
  }
};

__device__ __forceinline__ int any_lane(int status) {
  int all = 0;
  for (int bit = NOT_A_NUMBER; bit <= LAST_STATUS; bit *= 2)
    if (__any_sync(FULL_WARP, status & bit)) all |= bit;
  return all;
}

// After the last strip: Z of the end cell from the lane that has it. Adds NO_PATH to the status.
__device__ __forceinline__ void write_value(const Problem& problem, TheStrip& strip) {
  const int owner = (strip.item.m - 1) % TheStrip::WIDTH / COLUMNS;
  const TheStrip::N end = from_lane(strip.end, owner);
  const int cells = strip.item.n + strip.item.m;  // of a path, at most
  if (Arithmetic::is_zero(end.z)) strip.status |= NO_PATH;
  if (Arithmetic::masks_matter(end.z, strip.status)) strip.status |= OUT_OF_RANGE;
  if (problem.value && Arithmetic::is_imprecise(end.z, cells)) strip.status |= OUT_OF_RANGE;
  // What is out of range is not known to have no path.
  if (strip.status & OUT_OF_RANGE) strip.status &= ~NO_PATH;
  if (strip.lane != 0 || strip.status & OUT_OF_RANGE) return;
  int64 p = strip.item.pair;
  bool bad = strip.status & NOT_A_NUMBER, none = strip.status & NO_PATH;
  if (problem.value) {
    double value = bad ? not_a_number() : none ? infinity<double>() : strip.arithmetic.value(end.z, strip.gamma, cells);
    static_cast<COST*>(problem.value)[p] = COST(value);
  }
#if WITH_ORDER == 2
  {
    double value = end.tangent;
    if (strip.tangent_ratio != 0) value += strip.tangent_ratio * strip.arithmetic.value(end.z, strip.gamma, cells);
    static_cast<COST*>(problem.tangent_value)[p] = COST(bad ? not_a_number() : none ? 0.0 : value);
  }
#endif
}

#if WITH_ORDER > 0
// The sums of one strip over its lanes, times grad_value.
__device__ __forceinline__ void write_sums(const Problem& problem, const TheStrip& strip, const TheStrip::Sums& sums, double scale) {
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

#endif

struct Work {
  int64 pair;
  int begin, end, stride;  // strips begin, begin + stride, ... of those below end
  bool alone;              // no other warp has strips of this item
  Flag flags;              // of strip 0 in the forward sweep; null if alone

  __device__ __forceinline__ Flag flag(int strip) const { return {alone ? nullptr : flags.rows + strip, flags.in_block}; }
};

// The next work of this warp; false when there is none.
__device__ __forceinline__ bool next_work(const Problem& problem, Work& work, int64 step, int lane) {
  if (!problem.ticket) {
    work.pair += step;
    return work.pair < problem.pairs;
  }
  int ticket = lane == 0 ? atomic_add(problem.ticket, 1) : 0;
  ticket = from_lane(ticket, 0);
  work.pair = ticket % problem.pairs;
  work.begin = int(ticket / problem.pairs);
  if (problem.phases == BACKWARD) work.begin = int(problem.strips) - 1 - work.begin;
  work.end = work.begin + 1;
  work.flags.rows = problem.progress + work.pair * problem.strips;
  return ticket < problem.pairs * problem.strips;
}

__device__ __forceinline__ void forward(const Problem& problem, TheStrip& strip, const Work& work) {
  const int64 p = work.pair;
  for (int s = work.begin; s < min(work.end, strip.strips); s += work.stride) {
    const PublishRows publish = {work.flag(s)};
    AwaitRows left = {s > 0 ? work.flag(s - 1) : Flag{nullptr, false}};
    strip.select(s);
    strip.forward(left, publish);
    if (!work.alone) {
      strip.status = any_lane(strip.status);
      if (strip.lane == 0 && strip.status) atomic_or(problem.status + p, strip.status);
      // The last strip must know the status of all: each waits for its predecessor to have ended altogether.
      if (s > 0) left(strip.last_row_of(s - 1) - strip.first_row_of(s - 1) + 1);
    }
    if (s + 1 == strip.strips) {
      strip.status = any_lane(strip.status);
      if (!work.alone) strip.status |= load_acquire(problem.status + p);
      write_value(problem, strip);
      if (strip.lane == 0) {
        if (!work.alone) atomic_or(problem.status + p, strip.status);
        else if (!WIDE) problem.status[p] = strip.status;
      }
    }
    __syncwarp();  // borders and checkpoints are read by other lanes than wrote them
    if (strip.lane == LANES - 1) publish(strip.last - strip.first + 1);
  }
}

#if WITH_ORDER > 0
__device__ __forceinline__ void backward(const Problem& problem, TheStrip& strip, const Work& work) {
  const int64 p = work.pair;
  if (!work.alone) strip.status = load_acquire(problem.status + p);
  if (strip.status & OUT_OF_RANGE) return;
  const COST scale = static_cast<const COST*>(problem.grad_value)[p * problem.grad_value_stride];
  const int count = (min(work.end, strip.strips) - work.begin + work.stride - 1) / work.stride;
  for (int s = work.begin + (count - 1) * work.stride; s >= work.begin; s -= work.stride) {
    const PublishRows publish = {work.flag(s)};
    const AwaitRows right = {s + 1 < strip.strips ? work.flag(s + 1) : Flag{nullptr, false}};
    strip.select(s);
    TheStrip::Sums sums = strip.backward(scale, problem.grad_gamma != nullptr, right, publish);
    write_sums(problem, strip, sums, double(scale));
    __syncwarp();
    if (strip.lane == 0) publish(strip.last - strip.first);
  }
}
#endif

// Flags of the block family: one for each strip and sweep, behind the tiles in shared memory.
__device__ __forceinline__ int* shared_flags(const Problem& problem) {
  DYNAMIC_SHARED(shared);
  const int64 tile_bytes = problem.tile_steps * (COLUMNS * TheStrip::PARTS * LANES * int(sizeof(TheStrip::Real)));
  return reinterpret_cast<int*>(shared + (WITH_ORDER > 0 ? problem.team * tile_bytes : 0));
}

extern "C" __global__ void __launch_bounds__(256) lattice(SOFTDTW_PARAMETERS(SOFTDTW_LATTICE_FIELDS)) {
  const Problem problem = {SOFTDTW_VALUES(SOFTDTW_LATTICE_FIELDS)};
  const int lane = threadIdx.x % LANES, warp_in_block = threadIdx.x / LANES, warps_in_block = blockDim.x / LANES;
  const int64 warp = int64(blockIdx.x) * warps_in_block + warp_in_block;
  const bool in_block = problem.team > 1, by_ticket = problem.ticket != nullptr;
  const int64 worker = in_block ? blockIdx.x : warp, step = int64(gridDim.x) * (in_block ? 1 : warps_in_block);
  Work work = {worker - step, in_block ? warp_in_block : 0, int(problem.strips), int(problem.team), !in_block && !by_ticket,
               {in_block ? shared_flags(problem) : nullptr, in_block}};
  while (next_work(problem, work, step, lane)) {
    // A launch of the wide arithmetic follows every other and does what that one marked, mostly nothing.
    if (WIDE && (problem.status[work.pair] & (OUT_OF_RANGE | NOT_A_NUMBER)) != OUT_OF_RANGE) continue;
    const Item<WEAK> item(problem, work.pair);
    TheStrip strip(problem, item, by_ticket ? work.pair : worker, warp_in_block, warp);
    if (by_ticket && work.begin >= strip.strips) continue;  // the item is shorter than others
    if (in_block) {
      __syncthreads();  // nobody still waits for a flag of the item before
      for (int k = threadIdx.x; k < 2 * int(problem.strips); k += blockDim.x) work.flags.rows[k] = 0;
      __syncthreads();
    }
    if (problem.phases & FORWARD) forward(problem, strip, work);
#if WITH_ORDER > 0
    if (in_block) {
      __syncthreads();  // now the status is known to all
      work.flags.rows += problem.strips;
    }
    if (problem.phases & BACKWARD) backward(problem, strip, work);
    if (in_block) work.flags.rows -= problem.strips;
#endif
  }
}
