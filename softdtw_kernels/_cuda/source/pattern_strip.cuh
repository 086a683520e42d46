// What a strip does where its pattern (pattern.cuh) is none of the plain recursion's: chunks of steps at an open border,
// chunks without a path, begins and ends.
#pragma once

// What a lane carries backward beside its visits: the shares of its columns in the last row, and of some rows in the last
// column.
template <typename Real, int C, bool PATTERN>
struct VisitsOfEnds {};

template <typename Real, int C>
struct VisitsOfEnds<Real, C, true> {
  Real shares[C] = {}, is_end[C] = {};  // and 1 for the last column
  Real rows_of_ends = 0;
};

template <class S>
struct Patterned {
  using A = typename S::Arithmetic;
  using N = typename S::N;
  using State = typename S::State;
  using Visits = typename S::Visits;
  using Real = typename S::Real;
  using Cost = typename S::Cost;
  static constexpr int C = S::COLUMNS;

  // Of the columns of a lane, the one that it hands on.
  template <typename T>
  static __device__ __forceinline__ T end_of(const S& strip, const T (&columns)[C]) {
    T found = columns[C - 1];
#pragma unroll
    for (int c = 0; c < C - 1; ++c)
      if (c == strip.pattern.end_column) found = columns[c];
    return found;
  }

  // ---- forward ----

  // The border beside the first column in rows from `from` on, one a lane: out of a row leads the step to the next.
  static __device__ __forceinline__ N begins_beside(const S& strip, int from) {
    N node = S::nothing();
    if (strip.pattern.begins & OF_X && strip.lane < CHUNK) node.z = strip.pattern.of_ends.begin(from + strip.lane + 1);
    return node;
  }

  // Does a chunk that no other way is for, or says that Narrow is not to be tried, as it knows no zeros. All of that is the
  // same in the sweep that recomputes.
  template <bool KEEP>
  static __device__ __forceinline__ bool does(S& strip, State& state, int from, int to, int slot, bool& may_be_narrow) {
    const bool at_top = strip.pattern.begins & OF_Y && from < LANES;
    const bool at_bottom = strip.pattern.ends & OF_Y && to >= strip.last - strip.first;
    if (at_top || at_bottom) {
      BorderLane lane_of(strip, state, at_top);
      strip.template sweep_chunk<KEEP>(lane_of, from, to, slot);
      return true;
    }
    if (!strip.pattern.is_restricted()) return false;
    bool some = !A::is_zero(state.diagonal.z) || !A::is_zero(state.border_rows.z), every = true;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool is_zero = A::is_zero(state.above[c].z);
      some |= !is_zero;
      every &= !is_zero || strip.begin + c >= strip.item.m;
    }
    if (!__any_sync(FULL_WARP, some)) {
      pass<KEEP>(strip, from, to, slot);
      return true;
    }
    may_be_narrow = !__any_sync(FULL_WARP, !every);
    return false;
  }

  // No path comes to these cells; NaN among their costs is seen nevertheless.
  template <bool KEEP>
  static __device__ __forceinline__ void pass(S& strip, int from, int to, int slot) {
    const int rows = strip.last - strip.first;
    const bool writes_border = !KEEP && strip.lane == strip.pattern.border_lane;
    int row = from - strip.lane, place = strip.cells.place(row);
    N nothing = S::nothing();
    if constexpr (S::HAS_NARROW) nothing.z.exponent = Narrow<C>::NOWHERE;
#pragma unroll 1
    for (int step = from; step < to; ++step) {
      Cost costs[C];
      strip.load_costs(row, min(rows, to), place, infinity<Cost>(), costs);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        strip.status |= strip.arithmetic.status_of(costs[c]);
        if (KEEP) strip.tile_at(slot + step - from, c) = {};
      }
      if constexpr (S::IS_GATHERED) {
        if (writes_border) strip.gathered[step - from] = word_of(nothing);
      } else {
        if (writes_border && unsigned(row) < unsigned(rows)) strip.right_border[strip.first + row] = nothing;
      }
      place = strip.cells.next(place);
      ++row;
    }
  }

  // How a lane crosses a chunk in which some begin in the first row, or end in the last one.
  struct BorderLane : S::template ScaledLane<true> {
    typedef typename S::template ScaledLane<true> Base;
    typename A::Number before[C + 1];  // the border above the first row
    bool has_top;

    __device__ __forceinline__ BorderLane(S& strip, State& state, bool has_top) : Base{strip, state}, has_top(has_top) {
#pragma unroll
      for (int c = 0; c <= C; ++c) before[c] = has_top ? strip.pattern.of_ends.begin(strip.begin + c) : A::zero();
    }
    template <bool KEEP>
    __device__ __forceinline__ void cross(const N& left, int row, const Cost (&costs)[C], int slot) {
      S& strip = this->strip;
      State& state = this->state;
      const bool at_top = has_top && row == 0;
      if (at_top) {
        state.diagonal.z = before[0];
#pragma unroll
        for (int c = 0; c < C; ++c) state.above[c].z = before[c + 1];
      }
      strip.template cross<KEEP, true>(state, left, row, costs, slot, this->beyond, at_top);
      if (!KEEP && strip.pattern.ends & OF_Y && row == strip.last - strip.first - 1) {
#pragma unroll
        for (int c = 0; c < C; ++c)
          if (strip.begin + c < strip.item.m) strip.pattern.row()[strip.begin + c] = state.above[c].z;
      }
    }
  };

  static __device__ __forceinline__ typename A::Number node_of(const typename A::Number& z) {
    N node;
    node.z = z;
    return S::from_border(node).z;
  }

  // The ends of a lane, in order.
  struct EndsOfLane {
    const S& strip;

    // Calls `take` with the node of each, how many frames it leaves out, and its place.
    template <class Take>
    __device__ __forceinline__ void operator()(Take take) const {
      const auto& pattern = strip.pattern;
      const int of_column = pattern.ends_of_column(), count = of_column + (pattern.ends & OF_Y ? pattern.m : 0);
#pragma unroll 1
      for (int k = strip.lane; k < count; k += LANES) {
        const bool in_column = k < of_column;
        const auto z = in_column ? node_of(pattern.column()[k]) : pattern.row()[k - of_column];
        take(z, in_column ? pattern.n - 1 - k : count - 1 - k, k);
      }
    }
  };

  // After the last strip: what all ends are together, in place of the node in the last row and column. All lanes.
  static __device__ __forceinline__ void gather_ends(S& strip) {
    if (!strip.pattern.ends) return;
    __syncwarp();  // other lanes have written them
    strip.end.z = strip.pattern.of_ends.sum(EndsOfLane{strip});
    if (strip.lane == 0) strip.pattern.of_ends.keep(strip.pattern.kept);
  }

  // ---- backward ----

  static __device__ __forceinline__ void enter_from_ends(S& strip, Visits& carried) {
    if (!strip.pattern.ends) return;
    strip.pattern.of_ends.recall(strip.pattern.kept);
    if (strip.status & NO_PATH) return;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int column = strip.begin + c, m = strip.item.m;
      carried.is_end[c] = strip.pattern.ends & OF_X && column == m - 1 ? Real(1) : Real(0);
      if (strip.pattern.ends & OF_Y && column < m)
        carried.shares[c] = Real(strip.pattern.of_ends.share(strip.pattern.row()[column], m - 1 - column, strip.pattern.place_of(column)));
    }
  }

  // Whether some paths end in steps [from, to); takes what ends in the last column.
  static __device__ __forceinline__ bool has_ends(const S& strip, Visits& carried, int from, int to) {
    if (!strip.pattern.ends) return false;
    const int last_row = strip.last - strip.first - 1, last_step = last_row + strip.lane;
    bool found = false;
#pragma unroll
    for (int c = 0; c < C; ++c) found |= carried.shares[c] != Real(0) && from <= last_step && last_step < to;
    if (strip.index + 1 == strip.strips && strip.pattern.ends & OF_X && !(strip.status & NO_PATH)) {
      const int row = from + strip.lane - strip.pattern.border_lane;
      carried.rows_of_ends = 0;
      if (strip.lane < to - from && unsigned(row) < unsigned(strip.pattern.ends_of_column()))
        carried.rows_of_ends = Real(strip.pattern.of_ends.share(node_of(strip.pattern.column()[row]), last_row - row, row));
      found |= carried.rows_of_ends != Real(0);
    }
    return __any_sync(FULL_WARP, found);
  }

  static __device__ __forceinline__ void add_ends(const S& strip, Visits& carried, int row, int step) {
    const Real of_row = from_lane(carried.rows_of_ends, step);
    const bool is_last = row == strip.last - strip.first - 1;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      carried.below[0][c] = Bits<Real>::multiply_add(of_row, carried.is_end[c], carried.below[0][c]);
      if (is_last) carried.below[0][c] += carried.shares[c];
    }
  }

  // What leaves a pair diagonally, out of the lattice, has begun there.
  static __device__ __forceinline__ void count_begins(const S& strip, const Visits& carried, typename S::Sums& sums, int row, bool inside) {
    if (strip.pattern.begins & OF_X && strip.begin == 0 && inside) sums.skipped += double(row) * double(carried.leaving.diagonal[0]);
    if (strip.pattern.begins & OF_Y && row == 0) {
      sums.skipped += double(strip.begin) * double(carried.leaving.diagonal[0]);
#pragma unroll
      for (int c = 0; c + 1 < C; ++c) sums.skipped += double(strip.begin + c + 1) * double(carried.below[0][c]);
    }
  }

  // The entropy of the choice of an end, and how many frames ends leave out. All lanes.
  static __device__ __forceinline__ void count_ends(const S& strip, double& entropy, double& skipped) {
    double bits = 0, frames = 0;
    if (strip.pattern.ends && !(strip.status & NO_PATH))
      EndsOfLane{strip}([&](const typename A::Number& z, int left_out, int place) {
        const double share = strip.pattern.of_ends.share(z, left_out, place);
        if (share > 0) bits -= share * log(share);
        frames += share * left_out;
      });
    entropy += warp_sum(bits);
    skipped += warp_sum(frames);
  }
};
