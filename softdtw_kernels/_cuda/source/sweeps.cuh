// What surrounds the sweeps of a strip, whichever warps do them: waiting for other strips, the status of an item, and
// what is written once an item or a strip.
#pragma once
#include "strip.cuh"

// The progress of a strip that another warp may wait for. A bool says whether any warp does. A null pointer can't: where a
// condition sets a pointer to null, ptxas 13.0 may test it before it is set (seen on an H200).
struct Flag {
  int* rows;
  bool used, in_block;  // in shared memory

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
    if (!flag.used) return;
    while (seen < rows && (seen = flag.read()) < rows) pause_while_polling();
  }
};

struct PublishRows {
  Flag flag;
  __device__ __forceinline__ void operator()(int rows) const {
    if (flag.used) flag.write(rows);
  }
};

__device__ __forceinline__ int any_lane(int status) {
  int all = 0;
  for (int bit = NOT_A_NUMBER; bit <= LAST_STATUS; bit *= 2)
    if (__any_sync(FULL_WARP, status & bit)) all |= bit;
  return all;
}

// Of the status of an item, beside those of numbers.cuh: the value alone is left to Wide, the gradient is as good as any.
constexpr int IMPRECISE = 2 * LAST_STATUS;
// What fixed.cu leaves to the launch of lattice.cu that follows it: the item, or its value alone.
constexpr int LEFT = 4 * LAST_STATUS, VALUE_LEFT = 8 * LAST_STATUS;

// Whether a launch leaves the item to the launch of the wide arithmetic that follows it.
__device__ __forceinline__ bool is_for_wide(const Problem& problem, int status) {
  return is_left_to_wide(problem.value && status & IMPRECISE ? status | OUT_OF_RANGE : status);
}

// After the last strip: Z of the end cell from the lane that has it. Adds NO_PATH to the status.
template <class S>
__device__ __forceinline__ void write_value(const Problem& problem, S& strip) {
  using A = typename S::Arithmetic;
  using Cost = typename S::Cost;
  const int owner = (strip.item.m - 1) % S::WIDTH / S::COLUMNS;
  const typename S::N end = from_lane(strip.end, owner);
  const int cells = strip.item.n + strip.item.m;  // of a path, at most
  if (A::is_zero(end.z)) strip.status |= NO_PATH;
  if (A::masks_matter(end.z, strip.status)) strip.status |= OUT_OF_RANGE;
  if (problem.value && A::is_imprecise(end.z, cells)) strip.status |= IMPRECISE;
  // What is out of range is not known to have no path.
  if (strip.status & OUT_OF_RANGE) strip.status &= ~NO_PATH;
  if (strip.lane != 0 || is_for_wide(problem, strip.status)) return;
  int64 p = strip.item.pair;
  bool bad = strip.status & NOT_A_NUMBER, none = strip.status & NO_PATH;
  if (problem.value) {
    double value = bad ? not_a_number() : none ? infinity<double>() : strip.arithmetic.value(end.z, strip.gamma, cells);
    static_cast<Cost*>(problem.value)[p] = Cost(value);
  }
  if constexpr (S::HAS_TANGENT) {
    double value = end.tangent;
    if (strip.tangent_ratio != 0) value += strip.tangent_ratio * strip.arithmetic.value(end.z, strip.gamma, cells);
    static_cast<Cost*>(problem.tangent_value)[p] = Cost(bad ? not_a_number() : none ? 0.0 : value);
  }
}

// The sums of one strip over its lanes, times grad_value.
template <class S>
__device__ __forceinline__ void write_sums(const Problem& problem, const S& strip, const typename S::Sums& sums, double scale) {
  double dummy = warp_sum(sums.dummy), in_gamma;
  if (S::HAS_TANGENT) {
    // The derivatives are homogeneous too: cost . H_cost + dummy H_dummy + gamma H_gamma = 0.
    double weighted = warp_sum(sums.weighted) + (S::HAS_DUMMIES ? dummy * strip.dummy : 0.0);
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

// The strips of an item that a warp does.
struct Work {
  int64 pair;
  int begin, end, stride;  // strips begin, begin + stride, ... of those below end
  bool alone;              // no other warp has strips of this item
  int* flags;              // of strip 0; of no meaning if alone
  bool in_block;           // where they lie

  __device__ __forceinline__ Flag flag(int strip, bool exists = true) const {
    return {flags + strip, exists && !alone, in_block};
  }
  __device__ __forceinline__ PublishRows publish(int strip) const { return {flag(strip)}; }
  __device__ __forceinline__ AwaitRows await_left(int strip) const { return {flag(strip - 1, strip > 0)}; }
  __device__ __forceinline__ AwaitRows await_right(int strip, int strips) const { return {flag(strip + 1, strip + 1 < strips)}; }
  // The last of its strips of an item that has `strips`; before the first if it has none.
  __device__ __forceinline__ int last(int strips) const {
    return begin < strips ? begin + (min(end, strips) - 1 - begin) / stride * stride : begin - 1;
  }

  // One strip, which waits for others by flags in global memory. False if there is no such ticket.
  __device__ __forceinline__ bool take_strip(const Problem& problem, int ticket) {
    pair = ticket % problem.pairs;
    begin = int(ticket / problem.pairs);
    if (problem.phases == BACKWARD) begin = int(problem.strips) - 1 - begin;
    end = begin + 1;
    flags = problem.progress + pair * problem.strips;
    return ticket < problem.pairs * problem.strips;
  }
};

// After the forward sweep of a strip, by the warp that did it. `left` waits for the strip before.
template <bool WIDE, class S>
__device__ __forceinline__ void finish_forward(const Problem& problem, S& strip, const Work& work, AwaitRows& left) {
  const int64 p = strip.item.pair;
  const int s = strip.index;
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
      else if (!WIDE) problem.status[p] = strip.status | (problem.left_only ? problem.status[p] : 0);
    }
  }
  __syncwarp();  // borders and checkpoints are read by other lanes than wrote them
  if (strip.lane == LANES - 1) work.publish(s)(strip.last - strip.first + 1);
}

// Both sweeps of the wide arithmetic, whose numbers are large. So that one long item does not take much memory, its strips
// may go backward in groups: what the first sweep has left of other groups than the last are the borders between them,
// from which each is swept forward once more.
template <class S, class Forward, class Backward>
__device__ __forceinline__ void sweep_in_groups(const S& strip, Work work, Forward forward, Backward backward) {
  const int group = strip.in_groups() ? int(strip.problem.group) : strip.strips;
  for (int begin = (strip.strips - 1) / group * group; begin >= 0; begin -= group) {
    forward(work);  // all strips at first
    work.begin = begin;
    work.end = begin + group;
    backward(work);
    work.begin = begin - group;
    work.end = begin;
  }
}
