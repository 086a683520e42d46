// What surrounds the sweeps of a strip, whichever warps do them: which strips these are, the status of an item, and what is
// written once an item or a strip.
#pragma once
#include "strip.cuh"

__device__ __forceinline__ int any_lane(int status) {
  int all = 0;
  for (int bit = NOT_A_NUMBER; bit < DEEP << DEPTHS; bit *= 2) {
    if (bit == 2 * LAST_STATUS) bit = DEEP;  // those between are the same in all lanes
    if (__any_sync(FULL_WARP, status & bit)) all |= bit;
  }
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

// The value of an item that has a path, and into its status whether digits of that are lost. `item` has its size and arithmetic.
template <class I, class Number, class P>
__device__ __forceinline__ double value_of(const Problem& problem, const I& item, const Number& end, const P& pattern, int& status) {
  using A = typename I::Arithmetic;
  const int cells = item.item.n + item.item.m;  // of a path, at most
  const double before = item.arithmetic.value(end, item.gamma, cells);
  bool is_imprecise = A::is_imprecise(end, cells);
  double value = before;
  if constexpr (A::HAS_SHORTCUT) {
    const double skipped = pattern.skipped_at_most(item.gamma, cells);
    if (skipped > 0) is_imprecise |= fabs(before) * (sizeof(typename A::Cost) == 4 ? 1e-6 : 1e-12) < 1e-15 * skipped;
    if constexpr (I::MAY_WARP) {
      const double warp = problem.warp_of(item.item.pair);
      if (warp != 0) {
        value = before - cells * warp;
        is_imprecise = is_near_zero_of_warped(value, before, item.gamma, cells, depth_of(status), skipped, problem.single);
      }
    }
  }
  if (is_imprecise) status |= IMPRECISE;
  return value;
}

// After the last strip: Z of the end cell from the lane that has it. Adds NO_PATH to the status.
template <class S>
__device__ __forceinline__ void write_value(const Problem& problem, S& strip) {
  using A = typename S::Arithmetic;
  using Cost = typename S::Cost;
  if constexpr (S::HAS_PATTERN) Patterned<S>::gather_ends(strip);
  const int owner = (strip.item.m - 1) % S::WIDTH / S::COLUMNS;
  const typename S::N end = from_lane(strip.end, owner);
  const int cells = strip.item.n + strip.item.m;  // of a path, at most
  if (A::is_zero(end.z)) strip.status |= NO_PATH;
  if (A::masks_matter(end.z, strip.status)) strip.status |= OUT_OF_RANGE;
  double value = 0;
  if (problem.value && !A::is_zero(end.z)) value = value_of(problem, strip, end.z, strip.pattern, strip.status);
  // What is out of range is not known to have no path.
  if (strip.status & OUT_OF_RANGE) strip.status &= ~NO_PATH;
  const bool lost = strip.status & NOT_A_NUMBER, none = strip.status & NO_PATH;
  if constexpr (!A::HAS_SHORTCUT)
    if (A::is_endless(end.z)) strip.status |= NOT_A_NUMBER;  // a value like others, which has no derivatives
  if (strip.lane != 0 || is_for_wide(problem, strip.status)) return;
  int64 p = strip.item.pair;
  bool bad = strip.status & NOT_A_NUMBER;
  if (problem.value) {
    static_cast<Cost*>(problem.value)[p] = Cost(lost ? not_a_number() : none ? infinity<double>() : value);
  }
  if constexpr (S::HAS_TANGENT) {
    static_cast<Cost*>(problem.tangent_value)[p] = Cost(bad ? not_a_number() : none ? 0.0 : end.tangent);
  }
}

// The sums of one strip over its lanes, times grad_value.
template <class S>
__device__ __forceinline__ void write_sums(const Problem& problem, const S& strip, const typename S::Sums& sums, double scale) {
  double dummy = warp_sum(sums.dummy), in_gamma = -warp_sum(sums.entropy);
  double skipped = 0;
  if constexpr (S::HAS_PATTERN) {
    double entropy_of_ends = 0;
    skipped = warp_sum(sums.skipped);
    if (problem.grad_gamma && strip.index + 1 == strip.strips) Patterned<S>::count_ends(strip, entropy_of_ends, skipped);
    in_gamma -= entropy_of_ends;
  }
  if (strip.lane != 0) return;
  bool bad = strip.status & NOT_A_NUMBER;
  int64 place = strip.item.pair * problem.parts + strip.index;
  if (problem.grad_gamma) problem.grad_gamma[place] = bad ? not_a_number() : in_gamma == 0 ? 0.0 : scale * in_gamma;
  if (problem.grad_dummy) problem.grad_dummy[place] = bad ? not_a_number() : dummy == 0 ? 0.0 : scale * dummy;
  if constexpr (S::HAS_PATTERN) {
    double* const grad_skip = static_cast<const PatternProblem&>(problem).grad_skip;
    if (grad_skip) grad_skip[place] = bad ? not_a_number() : skipped == 0 ? 0.0 : scale * skipped;
  }
}

// The strips of an item that a warp does.
struct Work {
  int64 pair;
  int begin, end, stride;  // strips begin, begin + stride, ... of those below end
  bool alone;              // no other warp has strips of this item
  int block_flags;         // where they begin in shared memory, in bytes

  // Of a strip, for the one beside it: in shared memory if that is of the same block.
  __device__ __forceinline__ Flag flag(const Problem& problem, int strip, int other, bool exists = true) const {
    const int team = int(problem.team), first = problem.ticket ? strip / team * team : 0;
    const bool in_block = !problem.ticket || (first <= other && other < first + team);
    DYNAMIC_SHARED(of_block);
    int* const rows = in_block ? reinterpret_cast<int*>(of_block + block_flags) + (strip - first)
                               : problem.progress + pair * problem.strips + strip;
    return {rows, exists && !alone, in_block};
  }
  __device__ __forceinline__ PublishRows publish_right(const Problem& problem, int strip) const {
    return {flag(problem, strip, strip + 1)};
  }
  __device__ __forceinline__ PublishRows publish_left(const Problem& problem, int strip) const {
    return {flag(problem, strip, strip - 1)};
  }
  __device__ __forceinline__ AwaitRows await_left(const Problem& problem, int strip) const {
    return {flag(problem, strip - 1, strip, strip > 0)};
  }
  __device__ __forceinline__ AwaitRows await_right(const Problem& problem, int strip, int strips) const {
    return {flag(problem, strip + 1, strip, strip + 1 < strips)};
  }
  // The last of its strips of an item that has `strips`; before the first if it has none.
  __device__ __forceinline__ int last(int strips) const {
    return begin < strips ? begin + (min(end, strips) - 1 - begin) / stride * stride : begin - 1;
  }

  // One strip of the group of a ticket. Groups wait for each other by flags in global memory, or not by flags at all. False
  // if there is no such ticket.
  __device__ __forceinline__ bool take_strip(const Problem& problem, int ticket, int warp) {
    const int team = int(problem.team), strips = int(problem.strips), groups = (strips + team - 1) / team;
    int group = int(ticket / problem.pairs);
    pair = ticket % problem.pairs;
    if (problem.phases == BACKWARD) group = groups - 1 - group;
    begin = group * team + warp;
    end = min(begin + 1, strips);
    return ticket < problem.pairs * groups;
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
  if (strip.lane == LANES - 1) work.publish_right(problem, s)(strip.last - strip.first + 1);
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
