// Soft-DTW from features: the value and, where WITH_ORDER is 1, its gradient in the features. No matrix is stored.
//
// Compiled once for each combination of
//   WITH_COST        float or double, the dtype of the features
//   WITH_WIDE        0: fast arithmetic; marks the items beyond its range. 1: does the marked items, after the launch with 0
//   WITH_COLUMNS     columns a lane
//   WITH_TILE_STEPS  steps from checkpoint to checkpoint, and rows of a chunk
//   WITH_DISTANCE    1: squared Euclidean distances; 0: minus the dot product
//   WITH_ORDER       0: value; 1: gradient
//
// A block does a strip at a time: its first warp sweeps, the others, the workers, compute the costs of the rows that come
// next and, backward, add the visits of the rows that are done to the gradients. They meet after each tile. Work is shared
// out among blocks as in lattice.cu among warps: whole items, or strips that wait for each other. The part of a strip in
// grad_x is added after that of the strip on the right, in either case. As there, a gradient may start from the state that
// a value has left.
#define FLAGS_IN_BLOCK 0
#include "features.cuh"

typedef WITH_COST COST;
constexpr int COLUMNS = WITH_COLUMNS, TILE_STEPS = WITH_TILE_STEPS;
constexpr bool WIDE = WITH_WIDE, DISTANCE = WITH_DISTANCE;
#if WITH_WIDE
typedef Wide<COST> Arithmetic;
#else
typedef Scaled<COST> Arithmetic;
#endif
typedef Worker<COST, LANES * COLUMNS, TILE_STEPS, DISTANCE> TheWorker;
typedef RingCells<COST, TheWorker::RING_ROWS, TheWorker::PITCH> Cells;
typedef Strip<Arithmetic, COLUMNS, false, false, Cells> TheStrip;

constexpr int THREADS = (1 + WORKERS) * LANES;
// Blocks beside each other on a multiprocessor: registers must leave room for as many as shared memory does.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int FAST_BLOCKS = sizeof(COST) == 4 ? 4 : 2;
#else
constexpr int FAST_BLOCKS = sizeof(COST) == 4 ? 3 : 2;
#endif
constexpr int BLOCKS = WIDE ? 1 : FAST_BLOCKS;
// Shared memory: the ticket, the stages, then the ring and the tile unless they lie in global memory.
constexpr int TICKET_BYTES = 16, STAGE_BYTES = WORKERS * TheWorker::STAGE * 16;
constexpr int RING_BYTES = TheWorker::RING_ROWS * TheWorker::PITCH * int(sizeof(COST));
constexpr int TILE_REALS = TILE_STEPS * LANES * COLUMNS * TheStrip::PARTS;

// The host makes room for these.
static_assert(sizeof(TheStrip::N) == WITH_NODE_BYTES && sizeof(TheStrip::F) == WITH_FLOW_BYTES, "");
static_assert(TILE_STEPS % CHUNK == 0, "sweeps go by chunks");
static_assert(STAGE_BYTES == WITH_STAGE_BYTES && RING_BYTES == WITH_RING_BYTES, "");

// Whole items in turn, or a strip a ticket.
__device__ __forceinline__ bool next_work(const Problem& problem, Work& work, int* shared_ticket) {
  if (!problem.ticket) {
    work.pair += gridDim.x;
    return work.pair < problem.pairs;
  }
  if (threadIdx.x == 0) *shared_ticket = atomic_add(problem.ticket, 1);
  meet();
  const int ticket = *shared_ticket;
  meet();  // before it is overwritten
  return work.take_strip(problem, ticket, 0);
}

// A launch of the wide arithmetic follows every other and does what that one marked, mostly nothing.
__device__ __forceinline__ bool is_for_another(const Problem& problem, int64 pair) {
  return WIDE && !is_for_wide(problem, problem.status[pair]);
}

__device__ __forceinline__ int tiles_of(const TheStrip& strip) { return (strip.steps + TILE_STEPS - 1) / TILE_STEPS; }

// ---- the first warp; the workers' functions of the same names meet it as often ----

__device__ __forceinline__ void forward(const FeatureProblem& problem, TheStrip& strip, const Work& work) {
  for (int s = work.begin; s < min(work.end, strip.strips); ++s) {
    AwaitRows left = work.await_left(problem, s);
    strip.select(s);
    TheStrip::State state;
    strip.enter_forward(state, left);
    meet();
    for (int begin = 0; begin < strip.steps; begin += TILE_STEPS) {
      strip.forward_steps(state, begin, min(strip.steps, begin + TILE_STEPS), left, work.publish_right(problem, s));
      meet();
    }
    strip.leave_forward(state);
    finish_forward<WIDE>(problem, strip, work, left);
    meet();  // the workers read the status of the item, and overwrite the ring
  }
}

#if WITH_ORDER > 0
__device__ __forceinline__ void backward(const FeatureProblem& problem, TheStrip& strip, const Work& work) {
  const COST scale = static_cast<const COST*>(problem.grad_value)[work.pair * problem.grad_value_stride];
  for (int s = work.last(strip.strips); s >= work.begin; --s) {
    const PublishRows publish = work.publish_left(problem, s);
    const PublishRows publish_x = {{problem.grad_x_progress + work.pair * problem.strips + s, !work.alone, false}};
    AwaitRows right = work.await_right(problem, s, strip.strips);
    strip.select(s);
    TheStrip::Visits visits;
    TheStrip::Sums sums;
    strip.enter_backward(visits, right);
    meet();
    for (int tile = tiles_of(strip) - 1; tile >= 0; --tile) {
      const int begin = tile * TILE_STEPS, end = min(strip.steps, begin + TILE_STEPS);
      strip.backward_tile(visits, sums, begin, end, scale, problem.grad_gamma != nullptr, right, publish);
      meet();
      // Meanwhile the workers have added the rows of the tile before.
      if (strip.lane == 0) publish_x(max(0, strip.last - strip.first - (tile + 1) * TILE_STEPS));
    }
    write_sums(problem, strip, sums, double(scale));
    __syncwarp();  // flows are read by other lanes than wrote them
    if (strip.lane == 0) publish(strip.last - strip.first);
    meet();
    if (strip.lane == 0) publish_x(strip.last - strip.first);
  }
}
#endif

// ---- the workers ----

__device__ __forceinline__ void select(TheStrip& strip, TheWorker& worker, int s) {
  strip.select(s);
  const int begin = s * TheStrip::WIDTH;
  worker.select(strip.item.pair, strip.first, strip.last, begin, min(begin + TheStrip::WIDTH, strip.item.m));
}

__device__ __forceinline__ void forward(TheStrip& strip, TheWorker& worker, const Work& work) {
  for (int s = work.begin; s < min(work.end, strip.strips); ++s) {
    select(strip, worker, s);
    worker.produce(0);
    meet();
    for (int tile = 0; tile < tiles_of(strip); ++tile) {
      worker.produce(tile + 1);
      meet();
    }
    meet();
  }
}

#if WITH_ORDER > 0
// Adds the visits of a chunk of rows to the gradients.
__device__ __forceinline__ void consume(const FeatureProblem& problem, const TheStrip& strip, const TheWorker& worker, int chunk) {
  if (!worker.has_chunk(chunk)) return;
  if (problem.grad_y) worker.sum_into_y(chunk);
  if (!problem.grad_x) return;
  const int right = strip.index + 1;
  if (problem.ticket && right < strip.strips) {
    const int first = strip.first_row_of(right), last = strip.last_row_of(right);
    AwaitRows await = Flag{problem.grad_x_progress + strip.item.pair * problem.strips + right, true, false};
    await(last - max(strip.first + chunk * TILE_STEPS, first));
  }
  worker.sum_into_x(chunk);
}

__device__ __forceinline__ void backward(const FeatureProblem& problem, TheStrip& strip, TheWorker& worker, const Work& work) {
  for (int s = work.last(strip.strips); s >= work.begin; --s) {
    select(strip, worker, s);
    const int tiles = tiles_of(strip);
    for (int chunk = tiles - 1; chunk >= tiles - 1 - TheWorker::REACH; --chunk) worker.produce(chunk);
    meet();
    for (int tile = tiles - 1; tile >= 0; --tile) {
      worker.produce(tile - 1 - TheWorker::REACH);
      consume(problem, strip, worker, tile + 1);
      meet();
    }
    consume(problem, strip, worker, 0);
    meet();
  }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) features(const __grid_constant__ FeatureProblem problem) {
  DYNAMIC_SHARED(shared);
  unsigned char* in_shared = shared + TICKET_BYTES + STAGE_BYTES;
  // In one kind of memory for all of a kernel's calls: pointers that may be either make slow accesses.
  unsigned char* ring = WIDE ? static_cast<unsigned char*>(problem.rings) + int64(blockIdx.x) * RING_BYTES : in_shared;
  void* tile = WIDE ? static_cast<void*>(static_cast<TheStrip::Real*>(problem.tiles) + int64(blockIdx.x) * TILE_REALS)
                    : in_shared + RING_BYTES;
  Work work = {int64(blockIdx.x) - gridDim.x, 0, int(problem.strips), 1, problem.ticket == nullptr, 0};
  // The two roles part here for good, so that neither holds the registers of the other.
  if (threadIdx.x < LANES) {
    while (next_work(problem, work, reinterpret_cast<int*>(shared))) {
      if (is_for_another(problem, work.pair)) continue;
      const Item<false> item(problem, work.pair);
      TheStrip strip(problem, item, problem.ticket ? work.pair : blockIdx.x, tile, Cells{reinterpret_cast<COST*>(ring)});
      if (work.begin >= strip.strips) continue;  // the item is shorter than others
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
      if (!(problem.phases & BACKWARD)) continue;
      if (problem.ticket || !(problem.phases & FORWARD)) strip.status = load_acquire(problem.status + work.pair);
      if (!is_for_wide(problem, strip.status)) backward(problem, strip, work);
#endif
    }
    return;
  }
  TheWorker worker(problem, reinterpret_cast<COST*>(ring), shared + TICKET_BYTES, int(threadIdx.x) / LANES - 1);
  while (next_work(problem, work, reinterpret_cast<int*>(shared))) {
    if (is_for_another(problem, work.pair)) continue;
    const Item<false> item(problem, work.pair);
    TheStrip strip(problem, item, 0, tile, Cells{reinterpret_cast<COST*>(ring)});
    if (work.begin >= strip.strips) continue;
#if WITH_ORDER > 0
    if (WIDE) {
      sweep_in_groups(
          strip, work, [&](const Work& group) { forward(strip, worker, group); },
          [&](const Work& group) { backward(problem, strip, worker, group); });
      continue;
    }
#endif
    if (problem.phases & FORWARD) forward(strip, worker, work);
#if WITH_ORDER > 0
    if (problem.phases & BACKWARD && !is_for_wide(problem, problem.status[work.pair]))
      backward(problem, strip, worker, work);
#endif
  }
}
