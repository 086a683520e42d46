// A strip: 32 * C neighboring columns of one item's lattice, swept by one warp.
//
// Lane l owns C columns, which it keeps in registers, and at step t does its part of row first + t - l: a skewed
// wavefront in which each lane takes what it needs of the columns to its left from lane l - 1, one step later, by a
// shuffle. Lane 0 takes it from the border that the strip to the left wrote to global memory.
//
// A backward sweep runs the same steps in reverse: at step t each lane sends the visits E that flow left to lane l - 1.
// The transition probabilities it needs are recomputed, `tile_steps` steps at a time, from the state of the lanes that
// the forward sweep saved at the start of every tile (a checkpoint). So tiles are skewed too, and no lane ever waits.
//
// How borders and visits get from strip to strip where warps wait for each other: handoff.cuh.
//
// A backward sweep only reads borders and checkpoints, so that one forward sweep may serve several, in later launches.
// Visits flow into memory of their own, of one border an item: a strip that sends those of a row to the left has had
// those of this row and of all below it from the right, which is what it overwrites.
//
// Second order (Mensch and Blondel 2018): the tangent R' = Z + sum p_k R'_k rides along the forward sweep, with
// p'_k = -(1/gamma) p_k (R'_k - sum p_l R'_l), and F = sum over successors (p' E + p F) along the backward sweep. Along gamma
// R' is less by the entropy H of the p_k: in place of R'_k stands R'_k + gamma' log p_k. The derivative by gamma is
// - sum (E H' + F H). Nothing here is as large as the costs, of which it would lose digits.
//
// Other steps, begins and ends than those of the plain recursion: pattern.cuh has the rules, pattern_strip.cuh what they ask of
// a strip. Nothing of them is left in the forms for plain problems.
//
// The file is long since both sweeps are one class: what they share is registers, which nothing outside can hold.
#pragma once
#include "cells.cuh"
#include "handoff.cuh"
#include "narrow.cuh"
#include "pattern.cuh"
#include "pattern_strip.cuh"
#include "tangents.cuh"

template <class Number, bool TANGENT>
struct Node;  // a lattice cell as its successors see it

template <class Number>
struct Node<Number, false> {
  Number z;
};

template <class Number>
struct Node<Number, true> {
  Number z;
  double tangent;  // R'; float64 because differences of neighbors count, divided by gamma
};

// What flows from a lane's first column to the column on its left, same row and row above.
template <typename Real, bool TANGENT>
struct Flow {
  Real left[TANGENT ? 2 : 1], diagonal[TANGENT ? 2 : 1];  // of E, and of F
};

template <class A, int C, bool WEAK, bool TANGENT, class Cells = MatrixCells<typename A::Cost, WEAK>, bool PATTERN = false>
struct Strip {
  using Arithmetic = A;
  using Real = typename A::Real;
  using Cost = typename A::Cost;
  using N = Node<typename A::Number, TANGENT>;
  using F = Flow<Real, TANGENT>;
  static constexpr int COLUMNS = C, WIDTH = LANES * C;
  static constexpr bool HAS_TANGENT = TANGENT, HAS_PATTERN = PATTERN;
  static constexpr bool MAY_WARP = !WEAK && sizeof(Cost) == 8 && Cells::OF_MATRICES;
  static constexpr int PARTS = TANGENT ? 4 : 2;  // p and p' of two predecessors; those of the diagonal follow
  static constexpr int ORDERS = TANGENT ? 2 : 1;
  static constexpr bool HAS_SHORTCUT = A::HAS_SHORTCUT && !TANGENT;
  // The sweep from features has no registers left for it.
  static constexpr bool HAS_NARROW = HAS_SHORTCUT && sizeof(Real) == 4 && Cells::STAGED;
  // What lane 0 or 31 hands on in a chunk of steps is gathered in shared memory and goes out at once, when it is right.
  static constexpr bool IS_GATHERED = HAS_NARROW;
  static constexpr int HANDED_BYTES = IS_GATHERED ? CHUNK * int(sizeof(uint64)) : 0;
  static constexpr int NARROW_PAUSE = 7;  // chunks, after one in which Narrow has failed: three bits
  static constexpr int UNROLLED = HAS_SHORTCUT ? 4 : 1;  // steps
  static constexpr bool MAY_GROUP = !A::HAS_SHORTCUT;  // the wide arithmetic; see sweep_in_groups

  const Problem& problem;
  const Item<WEAK>& item;
  A arithmetic;
  OfPattern<A, PATTERN> pattern;
  Cells cells;
  int lane, index, strips;  // of the item, not of the batch
  int tiles;                // of a strip, at most
  int first, last, steps;   // rows [first, last)
  int left_first, left_last, right_first, right_last;  // rows of the strips beside it; empty where there is none
  int begin;                // first column of the lane
  int top_lane;             // the last lane with a column inside the lattice
  double gamma, dummy, tangent_gamma, tangent_dummy;
  typename A::Weight dummy_weight;
  const Cost* tangent_cost;
  N* borders;                    // of the item, as the next two
  F* flows;
  N* checkpoint;
  N *left_border, *right_border;  // by row
  F *left_flow, *right_flow;  // and the row below the last
  Vector<Real, PARTS>* tile;
  uint64* gathered;              // in shared memory
  bool left_is_outside, right_is_outside;  // in another block, and told by words that carry their flag
  int status;
  bool filled;       // going backward: the ring is kept full of costs, from tile to tile
  int narrow_pause;  // chunks to go before Narrow is tried again

  N end;  // after a forward sweep: the node in the item's last column and row, on the lane that has it

  // What a lane carries from step to step. Local to the sweeps rather than a member: arrays stay in registers only if
  // nothing takes the address of what holds them before their loops are unrolled.
  struct State {
    N above[C], diagonal;  // the row above, and what is left of it
    N border_rows;         // the rows of a chunk of the border on the left, one a lane
    STAMPS
  };

  __device__ __forceinline__ Strip(const Problem& problem, const Item<WEAK>& item, int64 slot, void* tile, const Cells& cells,
                                   uint64* gathered = nullptr)
      : problem(problem), item(item), cells(cells), lane(threadIdx.x % LANES), tile(static_cast<Vector<Real, PARTS>*>(tile)),
        gathered(gathered), left_is_outside(false), right_is_outside(false), status(item.status), end(nothing()) {
    gamma = problem.gamma_of(item.pair);
    status |= arithmetic.start(gamma);
    if constexpr (MAY_WARP) {
      const double warp = problem.warp_of(item.pair);
      if (warp != 0) arithmetic.start_warped(warp, gamma, item.n + item.m, problem.single);
    }
    tangent_cost = TANGENT ? static_cast<const Cost*>(problem.tangent_cost) + problem.dense_offset(item.pair) : nullptr;
    tangent_gamma = TANGENT && problem.tangent_gamma && gamma > 0 ? problem.tangent_gamma[item.pair] : 0.0;
    if (WEAK) {
      dummy = problem.dummy_of(item.pair);
      dummy_weight = arithmetic.careful_weight(Real(dummy), status);
      if (!(fabs(dummy) < infinity<double>())) status |= NOT_A_NUMBER;
      tangent_dummy = TANGENT ? problem.tangent_dummy[item.pair] : 0.0;
    }
    strips = (item.m + WIDTH - 1) / WIDTH;
    tiles = (unsigned(problem.span) + LANES - 1 + unsigned(problem.tile_steps) - 1) / unsigned(problem.tile_steps);
    flows = static_cast<F*>(problem.flows) + slot * (is_handed() ? 2 * groups_of_strips() : 1) * (problem.span + 1);
    if constexpr (PATTERN) status |= pattern.start(problem, item.pair, slot, gamma, item.n, item.m);
    if (problem.kept) slot = item.pair;
    const int64 groups = in_groups() ? problem.strips / problem.group : 0;
    borders = static_cast<N*>(problem.borders) + slot * (problem.kept_borders + groups) * problem.span;
    checkpoint = static_cast<N*>(problem.checkpoints) +
                 slot * (in_groups() ? problem.group : problem.strips) * int64(tiles) * ((C + 1) * LANES);
  }

  __device__ __forceinline__ int first_row_of(int strip) const { return item.first_row(strip * WIDTH); }
  __device__ __forceinline__ int last_row_of(int strip) const { return item.last_row((strip + 1) * WIDTH); }

  __device__ __forceinline__ void select(int strip) {
    index = strip;
    first = first_row_of(strip);
    last = last_row_of(strip);
    int columns = min(WIDTH, item.m - strip * WIDTH);
    begin = strip * WIDTH + lane * C;
    top_lane = (columns + C - 1) / C - 1;
    steps = last - first + top_lane;
    left_first = left_last = right_first = right_last = 0;
    const int group = is_handed() ? strip / int(problem.team) : 0, place = is_handed() ? strip % int(problem.team) : 1;
    if (strip > 0) {
      left_first = first_row_of(strip - 1);
      left_last = last_row_of(strip - 1);
      left_border = border_of(strip - 1) - left_first;
      left_is_outside = place == 0;
      left_flow = flows + (2 * group - left_is_outside) * (problem.span + 1) - left_first;
    }
    if (strip + 1 < strips) {
      right_first = first_row_of(strip + 1);
      right_last = last_row_of(strip + 1);
      right_border = border_of(strip) - first;
      right_is_outside = is_handed() && place + 1 == int(problem.team);
      right_flow = flows + (2 * group + right_is_outside) * (problem.span + 1) - first;
    }
    narrow_pause = 0;
    if constexpr (PATTERN) {
      const bool is_last = strip + 1 == strips;
      pattern.template select<C>(begin, is_last, top_lane);
      if (is_last) {
        right_border = reinterpret_cast<N*>(pattern.column()) - first;
        right_is_outside = false;
      }
    }
    cells.select(first, last, strip * WIDTH);
  }

  // Whether strips of different blocks hand on words that carry their flag.
  __device__ __forceinline__ bool is_handed() const { return IS_GATHERED && problem.handed; }
  __device__ __forceinline__ int groups_of_strips() const {
    return (int(problem.strips) + int(problem.team) - 1) / int(problem.team);
  }

  __device__ __forceinline__ bool in_groups() const { return MAY_GROUP && problem.group; }

  // Whether a strip hands on a border: to the one on the right, or its ends.
  __device__ __forceinline__ bool hands_on() const {
    if constexpr (PATTERN) return pattern.border_lane >= 0;
    return index + 1 < strips;
  }

  // The border on the right of a strip.
  __device__ __forceinline__ N* border_of(int strip) const {
    const int kept = int(problem.kept_borders), group = int(problem.group);
    if (in_groups() && (strip + 1) % group == 0) return borders + (kept + strip / group) * problem.span;
    return borders + strip % kept * problem.span;
  }

  static __device__ __forceinline__ N nothing() {
    N node = {};
    node.z = A::zero();
    return node;
  }

  // ---- forward ----

  // The costs of the lane's cells of one row, counted from the first of the strip; +inf outside the band; `outside` beyond
  // the lattice and the first `rows` rows, behind which they may not be there yet (staged cells have costs of their own
  // beyond the last column); whatever where a weak lattice has a dummy.
  __device__ __forceinline__ void load_costs(int row, int rows, int place, Cost outside, Cost (&out)[C]) const {
    const bool inside = unsigned(row) < unsigned(rows) && (!WEAK || row % 2 == 1);
    if constexpr (Cells::STAGED) {
#pragma unroll
      for (int c = 0; c < C; ++c) out[c] = outside;
      if (inside) cells.read(place, out);
    } else {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        int column = begin + c;
        bool wanted = inside && column < item.m && !is_dummy(row, column), banned = !item.in_band(first + row, column);
        out[c] = !wanted ? outside : banned ? infinity<Cost>() : cells.load(place, first + row, column);
      }
    }
  }

  // Node of the border on the left at a row, nothing where that strip has no such row. Borders hold numbers as Narrow
  // leaves them: it writes one in every step, while they are read once.
  __device__ __forceinline__ N load_border(int row) const {
    return left_first <= row && row < left_last ? from_border(left_border[row]) : nothing();
  }

  static __device__ __forceinline__ N from_border(N node) {
    if constexpr (IS_GATHERED) node = from_word<N>(word_of(node));
    if constexpr (HAS_NARROW) node.z = Narrow<C>::number_of({node.z.mantissa, node.z.exponent});
    return node;
  }

  __device__ __forceinline__ void start_forward(State& state) {
#pragma unroll
    for (int c = 0; c < C; ++c) state.above[c] = nothing();
    state.diagonal = state.border_rows = nothing();
    // The cell before the origin: paths start by a diagonal step out of it.
    if (lane == 0 && index == 0) state.diagonal.z = arithmetic.one();
  }

  __device__ __forceinline__ bool is_dummy(int row, int column) const {
    return Lattice<WEAK>::is_dummy(row, column);
  }

  // Steps [from, to) of one chunk. KEEP: the transition probabilities go to the tile, from `slot` on; else the border is
  // written. Rows outside the strip are computed like others, for the sake of a loop without branches: they are zero
  // before the first row, and of no consequence after the last. The quickest way is tried first; one that fails leaves the
  // state as it was, and what else it has written is written again.
  template <bool KEEP>
  __device__ __forceinline__ void forward_chunk(State& state, int from, int to, int slot) {
    bool may_be_narrow = true;
    if constexpr (PATTERN)
      if (Patterned<Strip>::template does<KEEP>(*this, state, from, to, slot, may_be_narrow)) return;
    if constexpr (HAS_NARROW) {
      if (PATTERN && !may_be_narrow) {
        // It knows no zeros.
      } else if (narrow_pause == 0) {
        NarrowLane lane_of(*this, state);
        sweep_chunk<KEEP>(lane_of, from, to, slot);
        if (!__any_sync(FULL_WARP, lane_of.has_failed())) return lane_of.leave(state);
        narrow_pause = NARROW_PAUSE;
      } else {
        --narrow_pause;
      }
    }
    if constexpr (HAS_SHORTCUT) {
      const State before = state;
      ScaledLane<false> lane_of{*this, state};
      sweep_chunk<KEEP>(lane_of, from, to, slot);
      if (!__any_sync(FULL_WARP, lane_of.beyond)) return;
      state = before;
    }
    ScaledLane<true> lane_of{*this, state};
    sweep_chunk<KEEP>(lane_of, from, to, slot);
  }

  template <bool KEEP, class Lane>
  __device__ __forceinline__ void sweep_chunk(Lane& lane_of, int from, int to, int slot) {
    int row = from - lane, place = cells.place(row);
    const int rows = last - first, rows_here = min(rows, to);  // no row from the next chunk on
    bool writes_border = !KEEP && index + 1 < strips && lane == LANES - 1;
    if constexpr (PATTERN) writes_border = !KEEP && lane == pattern.border_lane;
    N* border = right_border + first;
    Cost costs[C];
    load_costs(row, rows_here, place, Lane::outside(), costs);
#pragma unroll UNROLLED
    for (int step = from; step < to; ++step) {
      typename Lane::Edge left = from_lane_below(lane_of.edge()), entering = from_lane(lane_of.border_rows(), step - from);
      if (lane == 0) left = entering;
      if (!WEAK || row % 2 != 0) place = cells.next(place);
      Cost next[C];
      load_costs(row + 1, rows_here, place, Lane::outside(), next);  // in flight during the step
      lane_of.template cross<KEEP>(left, row, costs, slot + step - from);
      if constexpr (IS_GATHERED) {
        if (writes_border) gathered[step - from] = word_of(lane_of.for_border());
      } else {
        if (writes_border && unsigned(row) < unsigned(rows)) border[row] = lane_of.for_border();
      }
      ++row;
#pragma unroll
      for (int c = 0; c < C; ++c) costs[c] = next[c];
    }
  }

  // How a lane crosses a chunk: with an exponent for each of its numbers,
  template <bool CAREFUL>
  struct ScaledLane {
    typedef N Edge;
    Strip& strip;
    State& state;
    bool beyond = false;

    static __device__ __forceinline__ Cost outside() { return infinity<Cost>(); }
    __device__ __forceinline__ const N& edge() const { return state.above[C - 1]; }
    __device__ __forceinline__ const N& border_rows() const { return state.border_rows; }
    __device__ __forceinline__ N for_border() const {
      N node = state.above[C - 1];
      if constexpr (PATTERN) node = Patterned<Strip>::end_of(strip, state.above);
      if constexpr (HAS_NARROW) node.z.exponent = Narrow<C>::edge_of(node.z).exponent;
      return node;
    }
    template <bool KEEP>
    __device__ __forceinline__ void cross(const N& left, int row, const Cost (&costs)[C], int slot) {
      strip.template cross<KEEP, CAREFUL>(state, left, row, costs, slot, beyond);
    }
  };

  // or with one for all of them.
  struct NarrowLane {
    typedef typename Narrow<C>::Edge Edge;
    Strip& strip;
    Narrow<C> numbers;
    Edge rows_of_border;
    int first_row;  // of the lane, if it starts from nothing
    float dummy_factor;

    __device__ __forceinline__ NarrowLane(Strip& strip, const State& state)
        : strip(strip), numbers(state.above, state.diagonal), rows_of_border(Narrow<C>::edge_of(state.border_rows.z)) {
      const bool has_corner = strip.lane == 0 && (strip.index == 0 || strip.first > 0);
      first_row = has_corner ? -1 : 0;
      if (WEAK) dummy_factor = fast_exp2(float(strip.dummy) * strip.arithmetic.scale);
    }
    static __device__ __forceinline__ Cost outside() { return Cost(0); }
    __device__ __forceinline__ Edge edge() const { return numbers.edge(); }
    __device__ __forceinline__ const Edge& border_rows() const { return rows_of_border; }
    __device__ __forceinline__ N for_border() const {
      N node;
      node.z = {numbers.edge().mantissa, numbers.edge().exponent};
      if constexpr (PATTERN) node.z.mantissa = Patterned<Strip>::end_of(strip, numbers.z);
      return node;
    }
    template <bool KEEP>
    __device__ __forceinline__ void cross(const Edge& left, int row, const Cost (&costs)[C], int slot) {
      float before = numbers.diagonal, beside = numbers.start_row(left, row == first_row);
      numbers.diagonal = beside;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        float weight = fast_exp2(costs[c] * strip.arithmetic.scale);
        if (WEAK && strip.is_dummy(row, strip.begin + c)) weight = dummy_factor;
        Transition<float> p;
        if constexpr (PATTERN) {
          const float left_factor = c == 0 ? strip.pattern.left_of_lane_factor : strip.pattern.left_factor;
          numbers.cross(c, weight, before, beside, p, KEEP, false, strip.pattern.up_factor, left_factor);
        } else {
          numbers.cross(c, weight, before, beside, p, KEEP);
        }
        if (KEEP) strip.tile_at(slot, c) = {{p.diagonal == 0.0f ? -p.up : p.up, p.left}};
      }
      numbers.end_row();
    }
    __device__ __forceinline__ bool has_failed() const { return numbers.has_failed(); }
    __device__ __forceinline__ void leave(State& state) const {
#pragma unroll
      for (int c = 0; c < C; ++c) state.above[c].z = numbers.number(c);
      state.diagonal.z = numbers.corner();
    }
  };

  // A row of the lane, counted from the first of the strip, whose neighbor on the left is given.
  template <bool KEEP, bool CAREFUL>
  __device__ __forceinline__ void cross(State& state, const N& left, int row, const Cost (&costs)[C], int slot, bool& beyond,
                                        bool at_top = false) {
    N before = state.diagonal, beside = left;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      N over = state.above[c], out = nothing();
      typename A::Weight weight;
      if constexpr (CAREFUL) weight = arithmetic.careful_weight(costs[c], status);
      else weight = arithmetic.weight(costs[c], beyond);
      const bool dummy_cell = is_dummy(row, begin + c);
      if (WEAK && dummy_cell) weight = dummy_weight;
      Transition<Real> p;
      if constexpr (PATTERN) {
        const auto up_here = pattern.of_ends.masked(over.z, pattern.up && !at_top);
        const auto left_here = pattern.of_ends.masked(beside.z, c == 0 ? pattern.left_of_lane : pattern.left);
        out.z = arithmetic.combine(before.z, up_here, left_here, weight, p, KEEP);
      } else {
        out.z = arithmetic.combine(before.z, over.z, beside.z, weight, p, TANGENT || KEEP);
      }
      Vector<Real, PARTS> parts;
      if (KEEP) {
        parts.v[0] = p.diagonal == Real(0) ? -p.up : p.up;
        parts.v[1] = p.left;
        if constexpr (TANGENT) Shares<Real>::put(parts, p);
      }
      if constexpr (TANGENT) {
        // Differences of neighbors, so that what the probabilities lack to a sum of 1 does not multiply a tangent.
        double d = before.tangent, u = over.tangent, l = beside.tangent;
        if (tangent_gamma != 0) {
          d += tangent_gamma * log_of_share(p.diagonal, p.up + p.left);
          u += tangent_gamma * log_of_share(p.up, p.diagonal + p.left);
          l += tangent_gamma * log_of_share(p.left, p.diagonal + p.up);
        }
        double most = p.diagonal >= p.up && p.diagonal >= p.left ? d : (p.up >= p.left ? u : l);
        double mean = most + (p.diagonal * (d - most) + p.up * (u - most) + p.left * (l - most));
        if (KEEP) {
          double factor = gamma > 0 ? -min(1 / gamma, LARGEST_RATE) : 0;
          double d_u = factor * p.diagonal * p.up * (d - u);
          double d_l = factor * p.diagonal * p.left * (d - l);
          double u_l = factor * p.up * p.left * (u - l);
          parts.v[2] = Real(u_l - d_u);
          parts.v[3] = Real(-d_l - u_l);
        }
        out.tangent = 0;
        if (!A::is_zero(out.z) && unsigned(row) < unsigned(last - first) && begin + c < item.m)
          out.tangent = mean + (dummy_cell ? tangent_dummy : tangent_of(first + row, begin + c));
      }
      if (KEEP) tile_at(slot, c) = parts;
      before = over;
      state.above[c] = beside = out;
    }
    state.diagonal = left;
  }

  __device__ __forceinline__ double tangent_of(int row, int column) const {
    const int64 place = Lattice<WEAK>::of_cost(row) * problem.dense_row + Lattice<WEAK>::of_cost(column) * problem.dense_column;
    return double(tangent_cost[place]);
  }

  // Probabilities lie lane by lane: each lane reads only what it wrote, without bank conflicts. Those of the diagonal are
  // what the others leave to 1; the first one's sign is set where that is nothing, whatever rounding leaves. Second order
  // keeps them as Shares has them.
  __device__ __forceinline__ Vector<Real, PARTS>& tile_at(int slot, int c) const { return tile[(slot * C + c) * LANES + lane]; }

  __device__ __forceinline__ N* checkpoint_at(int tile_index) const {
    const int strip = in_groups() ? index % int(problem.group) : index;
    return checkpoint + (int64(strip) * tiles + tile_index) * ((C + 1) * LANES) + lane;
  }

  // `await(rows)` returns once the strip on the left has done so many of its rows.
  template <class Await, class Publish>
  __device__ __forceinline__ void forward(Await await, Publish publish) {
    State state;
    if constexpr (Cells::STAGED) cells.fetch(0);
    enter_forward(state, await);
    for (int from = 0; from < steps; from += CHUNK) {
      if constexpr (Cells::STAGED) {
        cells.fetch(from / CHUNK + 1);
        await_copies<1>();
        __syncwarp();
        STAMP(state, COPIES_AWAITED);
      }
      forward_steps(state, from, min(steps, from + CHUNK), await, publish);
      if constexpr (Cells::STAGED) __syncwarp();  // before the next copies overwrite what was read
    }
    leave_forward(state);
  }

  template <class Await>
  __device__ __forceinline__ void enter_forward(State& state, Await& await) {
    start_forward(state);
    BEGIN_STAMPS(state);
    if (index == 0) return;
    if (first > 0) {
      if constexpr (IS_GATHERED) {
        ask_border(first - 1, lane == 0, first, await);
        state.diagonal = take_border(first - 1, lane == 0, first, await);
      } else {
        await(first - left_first);
        if (lane == 0) state.diagonal = load_border(first - 1);
      }
    }
    if constexpr (IS_GATHERED) ask_border(first + lane, lane < CHUNK, first + min(steps, CHUNK), await);
  }

  // A row of the border on the left, where all rows before `end` are about to be needed: asked for, and taken.
  template <class Await>
  __device__ __forceinline__ void ask_border(int row, bool wanted, int end, Await& await) const {
    wanted = wanted && left_first <= row && row < left_last;
    await.ask(reinterpret_cast<const uint64*>(left_border) + row, wanted, left_is_outside, min(end, left_last) - left_first);
  }

  template <class Await>
  __device__ __forceinline__ N take_border(int row, bool wanted, int end, Await& await) const {
    wanted = wanted && left_first <= row && row < left_last;
    const auto place = reinterpret_cast<const uint64*>(left_border) + row;
    const uint64 word = await.take(place, wanted, left_is_outside, min(end, left_last) - left_first);
    return wanted ? from_border(from_word<N>(word)) : nothing();
  }

  // Steps [from, to), from a multiple of CHUNK on. No cost beyond them is loaded, as it may not be there yet.
  template <class Await, class Publish>
  __device__ __forceinline__ void forward_steps(State& state, int from, int to, Await& await, Publish publish) {
    for (; from < to; from += CHUNK) {
      const int chunk_end = min(to, from + CHUNK);
      if (index > 0) {
        const int row = first + from + lane;
        if constexpr (IS_GATHERED) {
          state.border_rows = take_border(row, lane < CHUNK, first + chunk_end, await);
          STAMP(state, BORDER_AWAITED);
          ask_border(row + CHUNK, lane < CHUNK, first + min(steps, chunk_end + CHUNK), await);
        } else {
          await(min(first + chunk_end, left_last) - left_first);
          STAMP(state, BORDER_AWAITED);
          if (lane < CHUNK) state.border_rows = load_border(row);
        }
        STAMP(state, BORDER_LOADED);
      } else if constexpr (PATTERN) {
        state.border_rows = Patterned<Strip>::begins_beside(*this, from);
      }
      if (problem.checkpoints && (from & (int(problem.tile_steps) - 1)) == 0) {
        N* place = checkpoint_at(from / unsigned(problem.tile_steps));
#pragma unroll
        for (int c = 0; c < C; ++c) place[c * LANES] = state.above[c];
        N corner = state.diagonal;
        // Signs hold what recompute needs to do each chunk in the same way, whatever the tiles: mantissas are positive.
        if constexpr (HAS_NARROW)
          if (narrow_pause >> lane & 1) corner.z.mantissa = -corner.z.mantissa;
        place[C * LANES] = corner;
        STAMP(state, CHECKPOINT_KEPT);
      }
      forward_chunk<false>(state, from, chunk_end, 0);
      STAMP(state, ROWS_SWEPT);
#pragma unroll
      for (int c = 0; c < C; ++c) status |= A::look(state.above[c].z);
      status |= A::look(state.diagonal.z);
      if (IS_GATHERED && hands_on()) {
        hand_on_border(from, chunk_end);
        if (right_is_outside) {
          STAMP(state, BORDER_HANDED_ON);
          continue;
        }
        __syncwarp();  // before the flag says that all lanes' parts are there
      }
      if (lane == LANES - 1 && index + 1 < strips && chunk_end >= LANES) publish(chunk_end - (LANES - 1));
      STAMP(state, BORDER_HANDED_ON);
    }
  }

  // What lane 31 had at the end of each of these steps: to the strip on the right, and to the sweep backward.
  __device__ __forceinline__ void hand_on_border(int from, int to) const {
    __syncwarp();  // lane 31 has gathered it
    int behind = LANES - 1;
    if constexpr (PATTERN) behind = pattern.border_lane;
    const int row = from + lane - behind;
    if (lane < to - from && unsigned(row) < unsigned(last - first)) {
      uint64* const place = reinterpret_cast<uint64*>(right_border) + first + row;
      if (right_is_outside) store_relaxed(place, gathered[lane]);
      else *place = gathered[lane];
    }
  }

  __device__ __forceinline__ void leave_forward(const State& state) {
    status |= arithmetic.final_status(item.n + item.m);
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (begin + c == item.m - 1) end = state.above[c];
  }

  // ---- backward ----

  __device__ __forceinline__ bool has_flow(int row) const { return right_first <= row && row < min(right_last, last + 1); }
  __device__ __forceinline__ F load_flow(int row) const { return has_flow(row) ? right_flow[row] : F{}; }

  struct Sums {  // over the lane's cells
    double entropy = 0;  // of the transitions, weighted by visits: -dV/dgamma; or the derivative of that
    double dummy = 0;    // of the results at dummy cells
    double skipped = 0;  // of the frames that begins leave out, weighted by visits
  };

  // Transition probabilities of steps [begin, end) into the tile, from the lanes' state at step `begin`.
  __device__ __forceinline__ void recompute(int tile_index, int tile_begin, int tile_end) {
    State state;
    const N* place = checkpoint_at(tile_index);
#pragma unroll
    for (int c = 0; c < C; ++c) state.above[c] = place[c * LANES];
    state.diagonal = place[C * LANES];
    if constexpr (HAS_NARROW) {
      narrow_pause = __ballot_sync(FULL_WARP, state.diagonal.z.mantissa < 0) & NARROW_PAUSE;
      state.diagonal.z.mantissa = fabs(state.diagonal.z.mantissa);
    }
    for (int from = tile_begin; from < tile_end; from += CHUNK) {
      note(CHUNK_RECOMPUTED);
      state.border_rows = lane < CHUNK ? load_border(first + from + lane) : nothing();
      if constexpr (PATTERN)
        if (index == 0) state.border_rows = Patterned<Strip>::begins_beside(*this, from);
      forward_chunk<true>(state, from, min(tile_end, from + CHUNK), from - tile_begin);
    }
  }

  // What a lane carries from step to step of a backward sweep.
  struct Visits : VisitsOfEnds<Real, C, PATTERN> {
    Real below[ORDERS][C] = {};  // what the row below sends to each column
    Real pending[ORDERS] = {};   // and the column on the right, diagonally
    F leaving = {}, rows_of_flow = {};
  };

  // Writes `scale` times the result, E or F, of every cell of the strip and returns the lane's sums.
  template <class Await, class Publish>
  __device__ __forceinline__ Sums backward(Cost scale, bool with_entropy, Await await, Publish publish) {
    Sums sums;
    Visits visits;
    const int tile_steps = int(problem.tile_steps);
    enter_backward(visits, await);
    for (int begin = (steps - 1) / tile_steps * tile_steps; begin >= 0; begin -= tile_steps)
      backward_tile(visits, sums, begin, min(steps, begin + tile_steps), scale, with_entropy, await, publish);
    if constexpr (Cells::STAGED) {
      await_copies<0>();
      __syncwarp();
    }
    return sums;
  }

  template <class Await>
  __device__ __forceinline__ void enter_backward(Visits& carried, Await& await) {
    cells.start_results(item.pair);
    filled = false;
    if constexpr (PATTERN) Patterned<Strip>::enter_from_ends(*this, carried);
    if (index + 1 == strips) {
      if constexpr (PATTERN)
        if (pattern.ends) return;
      // The visit of the end.
#pragma unroll
      for (int c = 0; c < C; ++c)
        if (begin + c == item.m - 1 && !(status & NO_PATH)) carried.below[0][c] = Real(1);
      return;
    }
    F corner;
    if constexpr (IS_GATHERED) {
      ask_flow(last, lane == LANES - 1, last, await);
      corner = take_flow(last, lane == LANES - 1, last, await);
      ask_flows((steps - 1) / CHUNK * CHUNK, await);
    } else {
      await(right_last - last);
      corner = load_flow(last);
    }
#pragma unroll
    for (int k = 0; k < ORDERS; ++k) carried.pending[k] = lane == LANES - 1 ? corner.diagonal[k] : Real(0);
  }

  // Steps [tile_begin, tile_end), from the last to the first. What no visits flow into has none: of such chunks zeros are
  // written, and a tile reads costs and recomputes probabilities when its first visits come, which most tiles never see.
  // The results are the same to the bit. Visits that the lanes carry are known before those from the strip on the right, so
  // that nobody waits for these to recompute.
  template <class Await, class Publish>
  __device__ __forceinline__ void backward_tile(Visits& carried, Sums& sums, int tile_begin, int tile_end, Cost scale,
                                                bool with_entropy, Await& await, Publish publish) {
    const bool plain = fabs(scale) < infinity<Cost>();
    const Cost factor = Cells::STAGED && !plain ? Cost(1) : scale;
    bool recomputed = false;
    // Other cells have no registers left for passing over.
    if constexpr (!Cells::STAGED) recompute(tile_begin / int(problem.tile_steps), tile_begin, tile_end);
    if constexpr (Cells::STAGED)
      if (filled) {
        await_copies<1>();
        __syncwarp();
      }
    for (int from = (tile_end - 1) / CHUNK * CHUNK; from >= tile_begin; from -= CHUNK) {
      const int to = min(tile_end, from + CHUNK);
      bool visited = !Cells::STAGED || has_visits(carried, false);
      if constexpr (PATTERN) visited = Patterned<Strip>::has_ends(*this, carried, from, to) || visited;
      if (!visited) {
        load_flows(carried, from, await);
        visited = has_visits(carried, true);
      }
      if constexpr (Cells::STAGED)
        if (visited && !recomputed) {
          if (!filled) fill_ring(from / CHUNK, to, factor);
          filled = recomputed = true;
          recompute(tile_begin / int(problem.tile_steps), tile_begin, to);
        }
      note(visited ? CHUNK_VISITED : CHUNK_PASSED);
      if (visited) {
        load_flows(carried, from, await);
        if (with_entropy) backward_chunk<true>(carried, sums, from, to, tile_begin, factor);
        else backward_chunk<false>(carried, sums, from, to, tile_begin, factor);
      } else {
        pass_steps(from, to, last - first, factor, true);
      }
      __syncwarp();  // from here on, flows that other lanes have read may be overwritten
      if constexpr (IS_GATHERED) {
        if (index + 1 < strips && from > 0) ask_flows(from - CHUNK, await);
        if (index > 0) hand_on_flows(from, to, visited);
        __syncwarp();
      }
      if (lane == 0 && index > 0 && !left_is_outside && first + from < last) publish(last - (first + from));
      if constexpr (Cells::STAGED) {
        __syncwarp();
        cells.write_out(from / CHUNK, status & NOT_A_NUMBER ? Cells::NAN_INSTEAD : plain ? Cells::AS_THEY_ARE : Cells::TIMES,
                        scale);
        __syncwarp();
        if (filled) cells.fetch(from / CHUNK - int(problem.ring_chunks));
      }
    }
    if constexpr (Cells::STAGED)
      if (filled && !recomputed) {
        await_copies<0>();  // before zeros are written where they go
        __syncwarp();
        filled = false;
      }
  }

  // What the first column of the strip on the right sends to lane 31's last column in steps from `from` on.
  template <class Await>
  __device__ __forceinline__ void load_flows(Visits& carried, int from, Await& await) const {
    if (index + 1 == strips) return;
    const int lowest_row = first + from - (LANES - 1);
    if constexpr (IS_GATHERED) {
      carried.rows_of_flow = take_flow(lowest_row + lane, lane < CHUNK, lowest_row, await);
    } else {
      await(right_last - max(lowest_row, right_first));
      if (lane < CHUNK) carried.rows_of_flow = load_flow(lowest_row + lane);
    }
  }

  template <class Await>
  __device__ __forceinline__ void ask_flows(int from, Await& await) const {
    const int lowest_row = first + from - (LANES - 1);
    ask_flow(lowest_row + lane, lane < CHUNK, lowest_row, await);
  }

  // What flows to a row, where that to all rows from `lowest` on is about to be needed: asked for, and taken.
  template <class Await>
  __device__ __forceinline__ void ask_flow(int row, bool wanted, int lowest, Await& await) const {
    wanted = wanted && has_flow(row);
    const auto place = reinterpret_cast<const uint64*>(right_flow) + row;
    await.ask(place, wanted, right_is_outside, right_last - max(lowest, right_first));
  }

  template <class Await>
  __device__ __forceinline__ F take_flow(int row, bool wanted, int lowest, Await& await) const {
    wanted = wanted && has_flow(row);
    const auto place = reinterpret_cast<const uint64*>(right_flow) + row;
    const uint64 word = await.take(place, wanted, right_is_outside, right_last - max(lowest, right_first));
    return wanted ? from_word<F>(word) : F{};
  }

  // What lane 0 sent to the left in each of these steps; nothing where none were visited.
  __device__ __forceinline__ void hand_on_flows(int from, int to, bool visited) const {
    const int row = from + lane;
    if (row < to && lane < CHUNK && row < min(last, left_last + 1) - first) {
      const uint64 word = visited ? gathered[lane] : THERE;
      uint64* const place = reinterpret_cast<uint64*>(left_flow) + first + row;
      if (left_is_outside) store_relaxed(place, word);
      else *place = word;
    }
  }

  // Whether any lane has some. What lane 0 sends to the left has arrived already.
  __device__ __forceinline__ bool has_visits(const Visits& carried, bool with_flows) const {
    bool found = false;
#pragma unroll
    for (int k = 0; k < ORDERS; ++k) {
#pragma unroll
      for (int c = 0; c < C; ++c) found |= carried.below[k][c] != Real(0);
      found |= carried.pending[k] != Real(0);
      found |= lane > 0 && (carried.leaving.left[k] != Real(0) || carried.leaving.diagonal[k] != Real(0));
      found |= with_flows && (carried.rows_of_flow.left[k] != Real(0) || carried.rows_of_flow.diagonal[k] != Real(0));
    }
    return __any_sync(FULL_WARP, found);
  }

  // The costs of the chunks from the given one down. Rows of it and before are done by some lanes already, with zeros.
  __device__ __forceinline__ void fill_ring(int chunk, int to, Cost factor) {
#pragma unroll 1
    for (int k = 0; k < int(problem.ring_chunks); ++k) cells.fetch(chunk - k);
    await_copies<1>();
    __syncwarp();
    pass_steps(to, to + LANES - 1, min(last - first, to), factor, false);
    __syncwarp();
  }

  // The results of steps [from, to), in rows before `rows`, that have no visits; and the flows to the left, if `send`.
  __device__ __forceinline__ void pass_steps(int from, int to, int rows, Cost factor, bool send) {
    int row = to - 1 - lane, place = cells.place(row);
    F* flow = left_flow + first;
    const bool sends_left = !IS_GATHERED && send && lane == 0 && index > 0;
    const int rows_on_left = left_last - first + 1;
    Cost results[C];
#pragma unroll
    for (int c = 0; c < C; ++c) results[c] = Cells::STAGED ? factor * Cost(0) : Cost(0);
#pragma unroll 1
    for (int step = to - 1; step >= from; --step) {
      if (unsigned(row) < unsigned(rows)) {
        if constexpr (Cells::STAGED) {
          if (!WEAK || row % 2 == 1) cells.write(place, results);
        } else {
#pragma unroll
          for (int c = 0; c < C; ++c) store_result(row, begin + c, place, Cost(0));
        }
        if (sends_left && row < rows_on_left) flow[row] = F{};
      }
      if (!WEAK || row % 2 == 0) place = cells.previous(place);
      --row;
    }
  }

  // Of a cell inside the strip's rows, where results are not staged, if it is the matrix's.
  __device__ __forceinline__ void store_result(int row, int column, int place, Cost result) {
    if (is_dummy(row, column) || column >= item.m || !(Cells::TAKE_ALL || item.in_band(first + row, column))) return;
    cells.store(place, first + row, column, status & NOT_A_NUMBER ? Cost(not_a_number()) : result);
  }

  // Steps [from, to) of one chunk, from the last to the first.
  template <bool ENTROPY>
  __device__ __forceinline__ void backward_chunk(Visits& carried, Sums& sums, int from, int to, int tile_begin, Cost scale) {
    const bool sends_left = lane == 0 && index > 0;
    int row = to - 1 - lane, place = cells.place(row);
    F* flow = left_flow + first;
    const int rows = last - first, rows_on_left = left_last - first + 1;  // flows go to the row above too
#pragma unroll UNROLLED
    for (int step = to - 1; step >= from; --step) {
      F entering = from_lane_above(carried.leaving), from_right = from_lane(carried.rows_of_flow, step - from);
      if (lane == LANES - 1) entering = from_right;
      // Nothing visits the cells of rows outside the strip.
      const bool inside = unsigned(row) < unsigned(rows);
      if constexpr (PATTERN) Patterned<Strip>::add_ends(*this, carried, row, step - from);
      recross<ENTROPY>(carried, sums, entering, row, inside, place, step - tile_begin, scale);
      if constexpr (PATTERN && ENTROPY) Patterned<Strip>::count_begins(*this, carried, sums, row, inside);
      if constexpr (IS_GATHERED) {
        if (sends_left) gathered[step - from] = word_of(carried.leaving);
      } else {
        if (inside && sends_left && row < rows_on_left) flow[row] = carried.leaving;
      }
      if (!WEAK || row % 2 == 0) place = cells.previous(place);
      --row;
    }
  }

  // A row of the lane, counted from the first of the strip, backward.
  template <bool ENTROPY>
  __device__ __forceinline__ void recross(Visits& carried, Sums& sums, const F& entering, int row, bool inside, int place,
                                          int slot, Cost scale) {
    auto& below = carried.below;
    auto& pending = carried.pending;
    Cost results[C];
    Real from_right[ORDERS], diagonally[ORDERS];
#pragma unroll
    for (int k = 0; k < ORDERS; ++k) {
      below[k][C - 1] += pending[k];
      pending[k] = entering.diagonal[k];
      from_right[k] = entering.left[k];
      diagonally[k] = 0;
    }
#pragma unroll
    for (int c = C - 1; c >= 0; --c) {
      const int column = begin + c;
      const Vector<Real, PARTS> p = tile_at(slot, c);
      Real visits[ORDERS];
#pragma unroll
      for (int k = 0; k < ORDERS; ++k) visits[k] = below[k][c] + from_right[k];
      // From here on `below` is what this row sends to the row above. What goes up and left is taken from the visits, so
      // that none are lost or made by rounding.
#pragma unroll
      for (int k = 0; k < ORDERS; ++k) {
        Real up = visits[k] * fabs(p.v[0]), left = visits[k] * p.v[1], over;
        if constexpr (TANGENT) {
          Shares<Real>(p).share_out(visits, k, up, left, over);
        } else {
          over = max((visits[k] - up) - left, Real(0));
          if (Bits<Real>::has_sign(p.v[0])) over = 0;
        }
        from_right[k] = left;
        below[k][c] = up + diagonally[k];
        diagonally[k] = over;
      }
      const Real result = visits[ORDERS - 1];
      const Cost rounded = Cost(result);  // may be 0 where the result is not
      results[c] = Cells::STAGED || rounded != Cost(0) ? scale * rounded : Cost(0);
      if (is_dummy(row, column)) {
        sums.dummy += double(result);
      } else if constexpr (!Cells::STAGED) {
        if (inside) store_result(row, column, place, results[c]);
      }
      // Visits of pairs that begin go on to rows before the first.
      if constexpr (ENTROPY && TANGENT) sums.entropy += Shares<Real>(p).tangent_of_entropy(visits);
      else if (ENTROPY && (!PATTERN || inside)) sums.entropy += double(visits[0] * entropy_of_shares(fabs(p.v[0]), p.v[1]));
    }
    if constexpr (Cells::STAGED)
      if (inside && (!WEAK || row % 2 == 1)) cells.write(place, results);
#pragma unroll
    for (int k = 0; k < ORDERS; ++k) {
      carried.leaving.left[k] = from_right[k];
      carried.leaving.diagonal[k] = diagonally[k];
    }
  }
};
