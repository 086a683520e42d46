// A strip: 32 * C neighboring columns of one item's lattice, swept by one warp.
//
// Lane l owns C columns, which it keeps in registers, and at step t does its part of row first + t - l: a skewed
// wavefront in which each lane takes what it needs of the columns to its left from lane l - 1, one step later, by a
// shuffle. Lane 0 takes it from the border that the strip to the left wrote to global memory. Backward, the visits that
// flow left out of a strip overwrite that border, row by row, once the strip has no more use for it.
//
// A backward sweep runs the same steps in reverse: at step t each lane sends the visits E that flow left to lane l - 1.
// The transition probabilities it needs are recomputed, `tile_steps` steps at a time, from the state of the lanes that
// the forward sweep saved at the start of every tile (a checkpoint). So tiles are skewed too, and no lane ever waits.
//
// Second order (Mensch and Blondel 2018): the tangent R' = Z + sum p_k R'_k rides along the forward sweep, with
// p'_k = -(1/gamma) p_k (R'_k - sum p_l R'_l), and F = sum over successors (p' E + p F) along the backward sweep.
#pragma once
#include "problem.cuh"

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

template <class N, class F>
union Border {  // one row of it
  N node;
  F flow;
};

// The cells of a cost matrix of any strides: where their costs come from and where their results, E or F, go.
template <typename Cost, bool WEAK>
struct MatrixCells {
  static constexpr bool TAKE_ALL = false;  // of the lattice; else those inside the band
  const Problem& problem;
  const Cost* cost;
  Cost* out;

  __device__ __forceinline__ MatrixCells(const Problem& problem, int64 pair)
      : problem(problem), cost(static_cast<const Cost*>(problem.cost) + problem.cost_offset(pair)) {}
  __device__ __forceinline__ void select(int, int) {}
  __device__ __forceinline__ void start_results(int64 pair) {
    out = static_cast<Cost*>(problem.grad_cost) + problem.dense_offset(pair);
  }
  __device__ __forceinline__ Cost load(int row, int column) const {
    return cost[int64(WEAK ? row / 2 : row) * problem.stride_row + int64(WEAK ? column / 2 : column) * problem.stride_column];
  }
  __device__ __forceinline__ void store(int row, int column, Cost result) const {
    out[int64(WEAK ? row / 2 : row) * problem.dense_row + int64(WEAK ? column / 2 : column) * problem.dense_column] = result;
  }
};

template <class A, int C, bool WEAK, bool TANGENT, class Cells = MatrixCells<typename A::Cost, WEAK>>
struct Strip {
  using Arithmetic = A;
  using Real = typename A::Real;
  using Cost = typename A::Cost;
  using N = Node<typename A::Number, TANGENT>;
  using F = Flow<Real, TANGENT>;
  static constexpr int COLUMNS = C, WIDTH = LANES * C;
  static constexpr bool HAS_DUMMIES = WEAK, HAS_TANGENT = TANGENT;
  static constexpr int PARTS = TANGENT ? 6 : 3;  // p, and p'
  static constexpr int ORDERS = TANGENT ? 2 : 1;

  const Problem& problem;
  const Item<WEAK>& item;
  A arithmetic;
  Cells cells;
  int lane, index, strips;  // of the item, not of the batch
  int first, last, steps;   // rows [first, last)
  int begin;                // first column of the lane
  int top_lane;             // the last lane with a column inside the lattice
  double gamma, dummy, tangent_ratio, tangent_dummy;
  typename A::Weight dummy_weight;
  const Cost* tangent_cost;
  Border<N, F>* border;  // of the item
  N* checkpoint;
  Real* tile;
  int status;

  N end;  // after a forward sweep: the node in the item's last column and row, on the lane that has it

  // What a lane carries from step to step. Local to the sweeps rather than a member: arrays stay in registers only if
  // nothing takes the address of what holds them before their loops are unrolled.
  struct State {
    N above[C], diagonal;  // the row above, and what is left of it
    N border_rows;         // 32 rows of the border on the left, one a lane
  };

  __device__ __forceinline__ Strip(const Problem& problem, const Item<WEAK>& item, int64 slot, int warp_in_block, int64 tile_slot)
      : Strip(problem, item, slot, tile_of(problem, warp_in_block, tile_slot), Cells(problem, item.pair)) {}

  __device__ __forceinline__ Strip(const Problem& problem, const Item<WEAK>& item, int64 slot, Real* tile, const Cells& cells)
      : problem(problem), item(item), cells(cells), lane(threadIdx.x % LANES), tile(tile), status(item.status), end(nothing()) {
    gamma = problem.gamma_of(item.pair);
    status |= arithmetic.start(gamma);
    tangent_cost = TANGENT ? static_cast<const Cost*>(problem.tangent_cost) + problem.dense_offset(item.pair) : nullptr;
    // A direction in gamma is worth a direction in the costs: the value is homogeneous in (cost, dummy, gamma).
    tangent_ratio = TANGENT && problem.tangent_gamma && gamma > 0 ? problem.tangent_gamma[item.pair] / gamma : 0.0;
    if (WEAK) {
      dummy = problem.dummy_of(item.pair);
      dummy_weight = arithmetic.weight(Cost(dummy), status);
      if (!(fabs(dummy) < infinity<double>())) status |= NOT_A_NUMBER;
      tangent_dummy = TANGENT ? problem.tangent_dummy[item.pair] - tangent_ratio * dummy : 0.0;
    }
    strips = (item.m + WIDTH - 1) / WIDTH;
    int64 tiles = (problem.span + LANES - 1 + problem.tile_steps - 1) / problem.tile_steps;
    border = static_cast<Border<N, F>*>(problem.borders) + slot * problem.kept_borders * (problem.span + 1);
    checkpoint = static_cast<N*>(problem.checkpoints) + slot * problem.strips * tiles * ((C + 1) * LANES);
  }

  static __device__ __forceinline__ Real* tile_of(const Problem& problem, int warp_in_block, int64 tile_slot) {
    int64 tile_size = problem.tile_steps * (C * PARTS * LANES);
    DYNAMIC_SHARED(shared);
    return problem.tiles ? static_cast<Real*>(problem.tiles) + tile_slot * tile_size
                         : reinterpret_cast<Real*>(shared) + warp_in_block * tile_size;
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
    cells.select(first, strip * WIDTH);
  }

  static __device__ __forceinline__ N nothing() {
    N node = {};
    node.z = A::zero();
    return node;
  }

  // ---- forward ----

  // The costs of the lane's cells of one row; +inf outside the lattice and the band, and where a weak lattice has a dummy.
  __device__ __forceinline__ void load_costs(int row, Cost (&out)[C]) const {
    bool inside = first <= row && row < last && (!WEAK || row % 2 == 1);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      int column = begin + c;
      bool wanted = inside && column < item.m && item.in_band(row, column) && (!WEAK || column % 2 == 1);
      out[c] = wanted ? cells.load(row, column) : infinity<Cost>();
    }
  }

  // The border on the right of a strip at one of its rows, or at the row below its last: visits flow left from there too.
  __device__ __forceinline__ Border<N, F>& border_at(int strip, int row) const {
    return border[strip % int(problem.kept_borders) * (problem.span + 1) + (row - first_row_of(strip))];
  }

  // Node of the border on the left at a row, nothing where that strip has no such row.
  __device__ __forceinline__ N load_border(int row) const {
    if (index == 0 || row < first_row_of(index - 1) || row >= last_row_of(index - 1)) return nothing();
    return border_at(index - 1, row).node;
  }

  __device__ __forceinline__ void start_forward(State& state) {
#pragma unroll
    for (int c = 0; c < C; ++c) state.above[c] = nothing();
    state.diagonal = nothing();
    if (lane == 0 && first > 0) state.diagonal = load_border(first - 1);
    // The cell before the origin: paths start by a diagonal step out of it.
    if (lane == 0 && index == 0) state.diagonal.z = arithmetic.one();
  }

  __device__ __forceinline__ bool is_dummy(int row, int column) const {
    return WEAK && !(row % 2 == 1 && column % 2 == 1);
  }

  // One step of the wavefront. `slot` is the step's place in the tile, or -1 to keep no probabilities.
  __device__ __forceinline__ void forward_step(State& state, int step, const Cost (&costs)[C], int slot) {
    N left = from_lane_below(state.above[C - 1]);
    if (index > 0) {
      N entering = from_lane(state.border_rows, step % LANES);
      if (lane == 0) left = entering;
    } else if (lane == 0) {
      left = nothing();
    }
    int row = first + step - lane;
    if (row < first || row >= last) return;
    N before = state.diagonal, beside = left;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      N over = state.above[c], out = nothing();
      bool dummy_cell = is_dummy(row, begin + c);
      auto weight = dummy_cell ? dummy_weight : arithmetic.weight(costs[c], status);
      Transition<Real> p;
      out.z = arithmetic.combine(before.z, over.z, beside.z, weight, p, TANGENT || slot >= 0);
      if (slot >= 0) {
        tile_at(slot, c, 0) = p.diagonal;
        tile_at(slot, c, 1) = p.up;
        tile_at(slot, c, 2) = p.left;
      }
      if constexpr (TANGENT) {
        // Differences of neighbors, so that what the probabilities lack to a sum of 1 does not multiply a tangent.
        double d = before.tangent, u = over.tangent, l = beside.tangent;
        double most = p.diagonal >= p.up && p.diagonal >= p.left ? d : (p.up >= p.left ? u : l);
        double mean = most + (p.diagonal * (d - most) + p.up * (u - most) + p.left * (l - most));
        if (slot >= 0) {
          double factor = gamma > 0 ? -1 / gamma : 0;
          double d_u = factor * p.diagonal * p.up * (d - u);
          double d_l = factor * p.diagonal * p.left * (d - l);
          double u_l = factor * p.up * p.left * (u - l);
          tile_at(slot, c, 3) = Real(d_u + d_l);
          tile_at(slot, c, 4) = Real(u_l - d_u);
          tile_at(slot, c, 5) = Real(-d_l - u_l);
        }
        out.tangent = 0;
        if (!A::is_zero(out.z)) out.tangent = mean + (dummy_cell ? tangent_dummy : tangent_of(row, begin + c, costs[c]));
      }
      before = over;
      state.above[c] = beside = out;
    }
    state.diagonal = left;
  }

  __device__ __forceinline__ double tangent_of(int row, int column, Cost cost_here) const {
    int64 place = (WEAK ? row / 2 : row) * problem.dense_row + (WEAK ? column / 2 : column) * problem.dense_column;
    return double(tangent_cost[place]) - tangent_ratio * double(cost_here);
  }

  // Probabilities lie lane by lane: each lane reads only what it wrote, without bank conflicts.
  __device__ __forceinline__ Real& tile_at(int slot, int c, int part) const {
    return tile[((slot * C + c) * PARTS + part) * LANES + lane];
  }

  __device__ __forceinline__ N* checkpoint_at(int tile_index) const {
    int64 tiles = (problem.span + LANES - 1 + problem.tile_steps - 1) / problem.tile_steps;
    return checkpoint + (index * tiles + tile_index) * ((C + 1) * LANES) + lane;
  }

  // `await(rows)` returns once the strip on the left has done so many of its rows.
  template <class Await, class Publish>
  __device__ __forceinline__ void forward(Await await, Publish publish) {
    State state;
    enter_forward(state, await);
    forward_steps(state, 0, steps, await, publish);
    leave_forward(state);
  }

  template <class Await>
  __device__ __forceinline__ void enter_forward(State& state, Await& await) {
    if (index > 0 && first > 0) await(first - first_row_of(index - 1));
    start_forward(state);
  }

  // Steps [from, to). No cost beyond them is loaded, as it may not be there yet.
  template <class Await, class Publish>
  __device__ __forceinline__ void forward_steps(State& state, int from, int to, Await& await, Publish publish) {
    const int chunk = int(problem.chunk);
    Cost costs[C], next[C];
    load_costs(first + from - lane, costs);
    for (int step = from; step < to; ++step) {
      if (step % chunk == 0 && index > 0) {
        await(min(first + step + chunk, last_row_of(index - 1)) - first_row_of(index - 1));
        // Lane l has the row of step l of these 32; a chunk of the lanes comes anew.
        int coming = lane - step % LANES;
        if (coming >= 0 && coming < chunk) state.border_rows = load_border(first + step + coming);
      }
      if (problem.checkpoints && step % int(problem.tile_steps) == 0) {
        N* place = checkpoint_at(step / int(problem.tile_steps));
#pragma unroll
        for (int c = 0; c < C; ++c) place[c * LANES] = state.above[c];
        place[C * LANES] = state.diagonal;
      }
      load_costs(step + 1 < to ? first + step + 1 - lane : -1, next);  // in flight during the step
      forward_step(state, step, costs, -1);
      int row = first + step - lane;
      if (lane == LANES - 1 && row >= first && index + 1 < strips) {
        border_at(index, row).node = state.above[C - 1];
        if ((row - first + 1) % chunk == 0) publish(row - first + 1);
      }
#pragma unroll
      for (int c = 0; c < C; ++c) costs[c] = next[c];
    }
  }

  __device__ __forceinline__ void leave_forward(const State& state) {
    status |= arithmetic.final_status(item.n + item.m);
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (begin + c == item.m - 1) end = state.above[c];
  }

  // ---- backward ----

  __device__ __forceinline__ F load_flow(int row) const {
    if (row < first_row_of(index + 1) || row >= last_row_of(index + 1)) return F{};
    return border_at(index, row).flow;
  }

  struct Sums {  // over the lane's cells
    double entropy = 0;   // of the transitions, weighted by visits: -dV/dgamma
    double dummy = 0;     // of the results at dummy cells
    double weighted = 0;  // of cost times result
  };

  // Transition probabilities of steps [begin, end) into the tile, from the lanes' state at step `begin`.
  __device__ __forceinline__ void recompute(int tile_index, int tile_begin, int tile_end) {
    State state;
    const N* place = checkpoint_at(tile_index);
#pragma unroll
    for (int c = 0; c < C; ++c) state.above[c] = place[c * LANES];
    state.diagonal = place[C * LANES];
    Cost costs[C], next[C];
    load_costs(first + tile_begin - lane, costs);
    for (int step = tile_begin; step < tile_end; ++step) {
      if (index > 0 && (step == tile_begin || step % LANES == 0)) {
        int coming = step / LANES * LANES + lane;  // beyond this tile there are visits where the border was
        state.border_rows = coming < tile_end ? load_border(first + coming) : nothing();
      }
      load_costs(step + 1 < tile_end ? first + step + 1 - lane : -1, next);
      forward_step(state, step, costs, step - tile_begin);
#pragma unroll
      for (int c = 0; c < C; ++c) costs[c] = next[c];
    }
    __syncwarp();  // lane 0 is about to overwrite the border that the others have read
  }

  // What the first column of the strip on the right sends to lane 31's last column, a chunk of rows at a time.
  template <class Await>
  __device__ __forceinline__ void enter_from_right(int step, F& rows_of_flow, F& entering, Await& await) {
    const int done = steps - 1 - step, row = first + step - (LANES - 1), chunk = int(problem.chunk);
    if (done % chunk == 0) {
      await(last_row_of(index + 1) - max(row - (chunk - 1), first_row_of(index + 1)));
      int coming = lane - done % LANES;
      if (coming >= 0 && coming < chunk) rows_of_flow = load_flow(row - coming);
    }
    F from_right = from_lane(rows_of_flow, done % LANES);
    if (lane == LANES - 1) entering = from_right;
  }

  // What a lane carries from step to step of a backward sweep.
  struct Visits {
    Real below[ORDERS][C] = {};  // what the row below sends to each column
    Real pending[ORDERS] = {};   // and the column on the right, diagonally
    F leaving = {}, rows_of_flow = {};
  };

  // Writes `scale` times the result, E or F, of every cell of the strip and returns the lane's sums.
  template <class Await, class Publish>
  __device__ __forceinline__ Sums backward(Cost scale, bool with_entropy, Await await, Publish publish) {
    Sums sums;
    Visits visits;
    enter_backward(visits, await);
    const int tile_steps = int(problem.tile_steps);
    for (int tile_index = (steps - 1) / tile_steps; tile_index >= 0; --tile_index) {
      const int tile_begin = tile_index * tile_steps, tile_end = min(steps, tile_begin + tile_steps);
      recompute(tile_index, tile_begin, tile_end);
      backward_steps(visits, sums, tile_begin, tile_end, scale, with_entropy, await, publish);
    }
    return sums;
  }

  template <class Await>
  __device__ __forceinline__ void enter_backward(Visits& carried, Await& await) {
    cells.start_results(item.pair);
    if (index + 1 == strips) return;
    await(last_row_of(index + 1) - last);
    F corner = load_flow(last);
    for (int k = 0; k < ORDERS; ++k) carried.pending[k] = lane == LANES - 1 ? corner.diagonal[k] : Real(0);
  }

  // The steps of one tile, from the last to the first.
  template <class Await, class Publish>
  __device__ __forceinline__ void backward_steps(Visits& carried, Sums& sums, int tile_begin, int tile_end, Cost scale,
                                                 bool with_entropy, Await& await, Publish publish) {
    auto& below = carried.below;
    auto& pending = carried.pending;
    F& leaving = carried.leaving;
    const bool has_right = index + 1 < strips;
    for (int step = tile_end - 1; step >= tile_begin; --step) {
      F entering = from_lane_above(leaving);
      if (lane == LANES - 1) entering = F{};
      if (has_right) enter_from_right(step, carried.rows_of_flow, entering, await);
      leaving = F{};
      int row = first + step - lane;
      if (row < first || row >= last) continue;
      Cost costs[C];
      if (TANGENT) load_costs(row, costs);
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
        Real p[PARTS], visits[ORDERS];
#pragma unroll
        for (int part = 0; part < PARTS; ++part) p[part] = tile_at(step - tile_begin, c, part);
#pragma unroll
        for (int k = 0; k < ORDERS; ++k) visits[k] = below[k][c] + from_right[k];
        if (row == item.n - 1 && column == item.m - 1 && !(status & NO_PATH)) visits[0] += Real(1);
        // From here on `below` is what this row sends to the row above.
#pragma unroll
        for (int k = 0; k < ORDERS; ++k) {
          Real up = visits[k] * p[1];
          from_right[k] = visits[k] * p[2];
          Real over = visits[k] * p[0];
          if (k == 1) {
            up += visits[0] * p[PARTS - 2];
            from_right[k] += visits[0] * p[PARTS - 1];
            over += visits[0] * p[PARTS - 3];
          }
          below[k][c] = up + diagonally[k];
          diagonally[k] = over;
        }
        if (column >= item.m) continue;
        const Real result = visits[ORDERS - 1];
        if (is_dummy(row, column)) {
          sums.dummy += double(result);
        } else if (Cells::TAKE_ALL || item.in_band(row, column)) {
          Cost scaled = result == Real(0) ? Cost(0) : scale * Cost(result);
          cells.store(row, column, status & NOT_A_NUMBER ? Cost(not_a_number()) : scaled);
          if (TANGENT && result != Real(0)) sums.weighted += double(result) * double(costs[c]);
        }
        if (!TANGENT && with_entropy) sums.entropy += double(visits[0] * entropy(p));
      }
#pragma unroll
      for (int k = 0; k < ORDERS; ++k) {
        leaving.left[k] = from_right[k];
        leaving.diagonal[k] = diagonally[k];
      }
      if (lane == 0 && index > 0) {
        if (row <= last_row_of(index - 1)) border_at(index - 1, row).flow = leaving;
        if ((last - row) % int(problem.chunk) == 0) publish(last - row);
      }
    }
  }

  static __device__ __forceinline__ Real entropy(const Real (&p)[PARTS]) {
    Real sum = 0;
#pragma unroll
    for (int k = 0; k < 3; ++k)
      if (p[k] > Real(0)) sum -= p[k] * log(p[k]);
    return sum;
  }
};
