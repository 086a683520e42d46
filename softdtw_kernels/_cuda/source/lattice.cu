// The value of an alignment problem, its gradient, or the product of its Hessian with a direction.
//
// Compiled once for each combination of
//   WITH_COST     float or double, the dtype of the cost
//   WITH_WIDE     0: fast arithmetic; marks the items beyond its range. 1: does the marked items, after the launch with 0
//   WITH_COLUMNS  columns a lane
//   WITH_WEAK     1: the weak lattice with dummy cells, which is never stored
//   WITH_ORDER    0: value; 1: gradient; 2: Hessian product
//   WITH_STAGED   1: costs and results pass through shared memory
//   WITH_PATTERN  1: other steps, begins and ends than the plain recursion has, as its fields say (pattern.cuh)
//
// Work is shared out in one of three ways, by the host's choice of arguments:
//   warp    ticket null, team 1: a warp takes whole items, strip after strip, forward then backward, with scratch memory
//           of its own
//   block   ticket null, team W: the W warps of a block take an item together, warp w its strips w, w + W and so on,
//           forward then backward. A strip waits for its neighbor by a flag in shared memory. Each warp does its strips
//           in the order in which they wait for each other, and all warps of a block run: so no wait lasts for ever.
//   long    ticket set: a block takes a group of W strips at a time, a warp each, which wait for the rows they need of the
//           strip before them; FORWARD and BACKWARD are then launches of their own. A group's predecessor has a lower
//           ticket, so a block only ever waits for one that runs already: nothing is assumed about how many are resident.
//
// After a launch of fixed.cu it does only what that one left (left_only), always forward first.
//
// A gradient goes forward, then backward, or backward alone, from the state that the launch of a value left: borders,
// checkpoints and the status of every item. WITH_ORDER 0 leaves the same state as 1. It is not written again, by Wide
// neither, which does both sweeps for the items that the status marks.
#include "sweeps.cuh"

#ifndef WITH_PATTERN
#define WITH_PATTERN 0
#endif

typedef WITH_COST COST;
constexpr int COLUMNS = WITH_COLUMNS;
constexpr bool WIDE = WITH_WIDE, WEAK = WITH_WEAK, TANGENT = WITH_ORDER == 2, PATTERN = WITH_PATTERN;
#if WITH_PATTERN
typedef PatternProblem Given;
#else
typedef Problem Given;
#endif
#if WITH_WIDE
typedef Wide<COST> Arithmetic;
#elif WITH_ORDER == 2
typedef Scaled<double, COST> Arithmetic;
#else
typedef Scaled<COST> Arithmetic;
#endif
#if WITH_STAGED
typedef StagedCells<COST, WEAK, COLUMNS> Cells;
#elif WITH_WIDE && !WITH_WEAK
typedef RawCells<COST, WEAK> Cells;
#else
typedef MatrixCells<COST, WEAK> Cells;
#endif
typedef Strip<Arithmetic, COLUMNS, WEAK, TANGENT, Cells, PATTERN> TheStrip;

// The host makes room for these.
static_assert(sizeof(TheStrip::N) == WITH_NODE_BYTES && sizeof(TheStrip::F) == WITH_FLOW_BYTES, "");

__device__ __forceinline__ void forward(const Problem& problem, TheStrip& strip, const Work& work) {
  for (int s = work.begin; s < min(work.end, strip.strips); s += work.stride) {
    AwaitRows left = work.await_left(problem, s);
    strip.select(s);
    strip.forward(left, work.publish_right(problem, s));
    // What such a gamma leaves is garbage, and the status is kept: a gradient that sweeps forward again must find the same.
    if (!is_gamma(strip.gamma)) strip.status = NOT_A_NUMBER, strip.end = strip.nothing();
    finish_forward<WIDE>(problem, strip, work, left);
  }
}

#if WITH_ORDER > 0
__device__ __forceinline__ void backward(const Problem& problem, TheStrip& strip, const Work& work) {
  const int64 p = work.pair;
  if (!work.alone || !(problem.phases & FORWARD)) strip.status = load_acquire(problem.status + p);
  if (is_for_wide(problem, strip.status)) return;
  const COST scale = static_cast<const COST*>(problem.grad_value)[p * problem.grad_value_stride];
  for (int s = work.last(strip.strips); s >= work.begin; s -= work.stride) {
    const PublishRows publish = work.publish_left(problem, s);
    strip.select(s);
    TheStrip::Sums sums = strip.backward(scale, problem.grad_gamma != nullptr, work.await_right(problem, s, strip.strips), publish);
    write_sums(problem, strip, sums, double(scale));
    __syncwarp();
    if (strip.lane == 0) publish(strip.last - strip.first);
  }
}
#endif

// Shared memory: for each warp what it is about to hand on, its ring and, in a launch that goes backward, its tile, unless
// that lies in global memory; then flags. The block family has one for each strip and sweep, a group of strips one for each
// and the ticket.
__device__ __forceinline__ int tile_bytes(const Problem& problem) {
  return int(problem.tile_steps) * (COLUMNS * TheStrip::PARTS * LANES * int(sizeof(TheStrip::Real)));
}

__device__ __forceinline__ int ring_bytes(const Problem& problem) {
  return int(problem.ring_chunks) * (Cells::ROWS * Cells::WIDTH * int(sizeof(COST)));
}

__device__ __forceinline__ int shared_bytes_of_warp(const Problem& problem) {
  return TheStrip::HANDED_BYTES + ring_bytes(problem) + (WITH_ORDER > 0 && problem.phases & BACKWARD && !WIDE ? tile_bytes(problem) : 0);
}

// The next work of this warp; false when there is none.
__device__ __forceinline__ bool next_work(const Problem& problem, Work& work, int64 step, int warp_in_block, int* flags) {
  if (!problem.ticket) {
    work.pair += step;
    return work.pair < problem.pairs;
  }
  const int team = int(problem.team);
  if (team == 1) {
    const int ticket = threadIdx.x == 0 ? atomic_add(problem.ticket, 1) : 0;
    return work.take_strip(problem, from_lane(ticket, 0), 0);
  }
  __syncthreads();  // nobody still waits for a flag of the group before
  if (int(threadIdx.x) < team) flags[threadIdx.x] = 0;
  if (threadIdx.x == 0) flags[team] = atomic_add(problem.ticket, 1);
  __syncthreads();
  return work.take_strip(problem, flags[team], warp_in_block);
}

// Of a block, at most. A pattern asks for the registers of more, 168, so that twelve warps may run beside each other, as of
// plain kernels: what it has more is needed outside of the steady loops.
constexpr int THREADS = !PATTERN || WIDE || (sizeof(COST) == 8 && WITH_ORDER > 0) ? 256 : 384;

extern "C" __global__ void __launch_bounds__(THREADS, 1) lattice(const __grid_constant__ Given problem) {
  // By way of a shuffle the compiler sees that all lanes of a warp have the same, and so all that follows from it.
  const int warp_in_block = from_lane(int(threadIdx.x) / LANES, 0);
  const int warps_in_block = blockDim.x / LANES;
  const int64 warp = int64(blockIdx.x) * warps_in_block + warp_in_block;
  DYNAMIC_SHARED(shared);
  unsigned char* of_warp = shared + warp_in_block * shared_bytes_of_warp(problem);
  unsigned char* ring = of_warp + TheStrip::HANDED_BYTES;
  // In one kind of memory for all of a kernel's calls: pointers that may be either make slow accesses.
  void* tile = WIDE ? static_cast<unsigned char*>(problem.tiles) + warp * tile_bytes(problem) : ring + ring_bytes(problem);
  const int flags_begin = warps_in_block * shared_bytes_of_warp(problem);
  int* const flags = reinterpret_cast<int*>(shared + flags_begin);
  const bool by_ticket = problem.ticket != nullptr, in_block = problem.team > 1 && !by_ticket;
  const int64 worker = in_block ? blockIdx.x : warp, step = int64(gridDim.x) * (in_block ? 1 : warps_in_block);
  Work work = {worker - step, in_block ? warp_in_block : 0, int(problem.strips), by_ticket ? 1 : int(problem.team),
               !in_block && !by_ticket, flags_begin};
  while (next_work(problem, work, step, warp_in_block, flags)) {
    // A launch of the wide arithmetic follows every other and does what that one marked, mostly nothing.
    if (WIDE && !is_for_wide(problem, problem.status[work.pair])) continue;
    if (!WIDE && problem.left_only && !(problem.status[work.pair] & (problem.value ? LEFT | VALUE_LEFT : LEFT))) continue;
    const Item<WEAK> item(problem, work.pair);
    TheStrip strip(problem, item, by_ticket ? work.pair : worker, tile, Cells(problem, item, reinterpret_cast<COST*>(ring)),
                   reinterpret_cast<uint64*>(of_warp));
    if (by_ticket && work.begin >= strip.strips) continue;  // the item is shorter than others
    if (in_block) {
      __syncthreads();  // nobody still waits for a flag of the item before
      for (int k = threadIdx.x; k < 2 * int(problem.strips); k += blockDim.x) flags[k] = 0;
      __syncthreads();
    }
#if WITH_ORDER > 0
    if (WIDE) {
      sweep_in_groups(
          strip, work, [&](const Work& group) { forward(problem, strip, group); },
          [&](const Work& group) { backward(problem, strip, group); });
      continue;
    }
#endif
    if (problem.phases & FORWARD) forward(problem, strip, work);
#if WITH_ORDER > 0
    if (in_block) {
      __syncthreads();  // now the status is known to all
      work.block_flags += 4 * int(problem.strips);
    }
    if (problem.phases & BACKWARD) backward(problem, strip, work);
    if (in_block) work.block_flags -= 4 * int(problem.strips);
#endif
  }
}
