// Where the sweeps of a strip find the costs of its cells and leave the results, E or F.
//
// MatrixCells    in the matrices themselves, of any strides, cell by cell
// StagedCells    in a ring of rows in shared memory, which the warp fills from the matrix ahead of the sweep and, backward,
//                empties into the gradient behind it, a chunk of rows at a time: accesses to memory are wide, and nobody
//                waits for them
//
// RawCells       likewise, for Wide, of costs that may be float32 where the others of a call are float64
//
// A place is where the row of a lane lies; it moves by next() and previous().
#pragma once
#include "lattices.cuh"
#include "notes.cuh"

// Steps of a sweep, and as many rows, between two looks at the world outside the warp: costs that have come, progress of
// other strips, borders, checkpoints.
constexpr int CHUNK = 16;
constexpr int REACH = (LANES - 1 + CHUNK - 1) / CHUNK;  // chunks that the lanes reach back to, beside that of lane 0

template <typename Cost, bool WEAK>
struct MatrixCells {
  typedef Lattice<WEAK> L;
  static constexpr bool STAGED = false, TAKE_ALL = false;  // of the lattice, or what is inside the band
  static constexpr bool OF_MATRICES = true;
  static constexpr int ROWS = 0, WIDTH = 0;                // there is no ring
  const Problem& problem;
  const Cost* cost;
  Cost* out;

  __device__ __forceinline__ MatrixCells(const Problem& problem, const Item<WEAK>& item, Cost*)
      : problem(problem), cost(static_cast<const Cost*>(problem.cost) + problem.cost_offset(item.pair)) {}
  __device__ __forceinline__ void select(int, int, int) {}
  __device__ __forceinline__ void start_results(int64 pair) {
    out = static_cast<Cost*>(problem.grad_cost) + problem.dense_offset(pair);
  }
  __device__ __forceinline__ int place(int row) const { return 0; }
  __device__ __forceinline__ int next(int place) const { return 0; }
  __device__ __forceinline__ int previous(int place) const { return 0; }
  __device__ __forceinline__ Cost load(int, int row, int column) const {
    return cost[int64(L::of_cost(row)) * problem.stride_row + int64(L::of_cost(column)) * problem.stride_column];
  }
  __device__ __forceinline__ void store(int, int row, int column, Cost result) const {
    out[int64(L::of_cost(row)) * problem.dense_row + int64(L::of_cost(column)) * problem.dense_column] = result;
  }
};

template <typename Cost, bool WEAK>
struct RawCells : MatrixCells<Cost, WEAK> {
  typedef MatrixCells<Cost, WEAK> Base;

  __device__ __forceinline__ RawCells(const Problem& problem, const Item<WEAK>& item, Cost* ring) : Base(problem, item, ring) {
    const float* const first = static_cast<const float*>(problem.cost) + problem.cost_offset(item.pair);
    if (problem.single) this->cost = reinterpret_cast<const Cost*>(first);
  }
  __device__ __forceinline__ Cost load(int, int row, int column) const {
    const int64 place = row * this->problem.stride_row + column * this->problem.stride_column;
    return this->problem.single ? Cost(reinterpret_cast<const float*>(this->cost)[place]) : this->cost[place];
  }
};

// C: columns of a lane, in the lattice; of the rows and columns of a weak lattice every other is of the matrix.
template <typename Cost, bool WEAK, int C>
struct StagedCells {
  typedef Lattice<WEAK> L;
  static constexpr bool STAGED = true, TAKE_ALL = true, OF_MATRICES = true;
  static constexpr int WIDTH = WEAK ? LANES * C / 2 : LANES * C;  // of a row in the ring
  static constexpr int ROWS = WEAK ? CHUNK / 2 : CHUNK;           // of a chunk
  static constexpr int AT_ONCE = sizeof(Cost) * C <= 16 ? C : 16 / int(sizeof(Cost));  // elements of one access

  const Problem& problem;
  const Item<WEAK>& item;
  Cost* ring;
  const Cost* cost;
  Cost* out;
  int chunks;  // that the ring holds, a power of two
  int lane;
  int first_row, rows, first_column, columns;  // of the strip, in the matrix
  bool wide_in, wide_out;

  __device__ __forceinline__ StagedCells(const Problem& problem, const Item<WEAK>& item, Cost* ring)
      : problem(problem), item(item), ring(ring), chunks(int(problem.ring_chunks)), lane(threadIdx.x % LANES) {}

  // Rows [first, last) and columns from `begin` on, of the lattice.
  __device__ __forceinline__ void select(int first, int last, int begin) {
    first_row = L::of_cost(first);
    rows = WEAK ? last / 2 : last - first;
    first_column = L::of_cost(begin);
    columns = min(WIDTH, L::of_cost(item.m) - first_column);
    cost = static_cast<const Cost*>(problem.cost) + problem.cost_offset(item.pair) + first_row * problem.stride_row +
           first_column * problem.stride_column;
    out = static_cast<Cost*>(problem.grad_cost) + problem.dense_offset(item.pair) + first_row * problem.dense_row +
          first_column * problem.dense_column;
    wide_in = are_wide(cost, problem.stride_row, problem.stride_column);
    wide_out = are_wide(out, problem.dense_row, problem.dense_column);
  }
  __device__ __forceinline__ void start_results(int64) {}

  // Whether the C elements of a lane can be had AT_ONCE at a time.
  __device__ __forceinline__ bool are_wide(const Cost* matrix, int64 row, int64 column) const {
    constexpr int bytes = AT_ONCE * int(sizeof(Cost));
    return !WEAK && !item.has_band() && column == 1 && row * int64(sizeof(Cost)) % bytes == 0 &&
           reinterpret_cast<uint64>(matrix) % bytes == 0;
  }

  __device__ __forceinline__ int wrapped(int place) const { return place & (chunks * (ROWS * WIDTH) - 1); }
  // Of a row of the lattice, counted from the first of the strip; may lie before it.
  __device__ __forceinline__ int place(int row) const { return wrapped((WEAK ? row >> 1 : row) * WIDTH); }
  __device__ __forceinline__ int next(int place) const { return wrapped(place + WIDTH); }
  __device__ __forceinline__ int previous(int place) const { return wrapped(place - WIDTH); }

  // The elements of the lane's columns; of a weak lattice those of the real ones among them, the others stay as they are.
  __device__ __forceinline__ void read(int place, Cost (&out)[C]) const {
    if (WEAK) {
#pragma unroll
      for (int c = 0; c < C; ++c)
        if ((lane * C + c) % 2 == 1) out[c] = ring[place + (lane * C + c) / 2];
    } else {
      const auto all = *reinterpret_cast<const Vector<Cost, C>*>(ring + place + lane * C);
#pragma unroll
      for (int c = 0; c < C; ++c) out[c] = all.v[c];
    }
  }

  __device__ __forceinline__ void write(int place, const Cost (&results)[C]) const {
    if (WEAK) {
#pragma unroll
      for (int c = 0; c < C; ++c)
        if ((lane * C + c) % 2 == 1) ring[place + (lane * C + c) / 2] = results[c];
    } else {
      Vector<Cost, C> all;
#pragma unroll
      for (int c = 0; c < C; ++c) all.v[c] = results[c];
      *reinterpret_cast<Vector<Cost, C>*>(ring + place + lane * C) = all;
    }
  }

  __device__ __forceinline__ Cost* chunk_at(int chunk) const { return ring + wrapped(chunk * (ROWS * WIDTH)); }
  __device__ __forceinline__ bool in_band(int row, int column) const {
    return WEAK || item.in_band(first_row + row, first_column + column);
  }

  // Starts to copy a chunk of rows, if the strip has it. All lanes; to be awaited by await_copies. +inf outside the band.
  // Beyond the last column nothing matters but that numbers stay close to those on their left, as a lane may have both:
  // there its costs go on, and are 0 further out.
  __device__ __forceinline__ void fetch(int chunk) const {
    const int begin = chunk * ROWS, count = min(rows - begin, ROWS);
    if (chunk >= 0 && count > 0) {
      note(CHUNK_FETCHED);
      Cost* to = chunk_at(chunk);
      const Cost* from = cost + begin * problem.stride_row;
      if (wide_in && (lane + 1) * C <= columns) {
        to += lane * C;
        from += lane * C;
        if (count == ROWS) {
#pragma unroll
          for (int row = 0; row < ROWS; ++row, from += problem.stride_row) copy_row(to + row * WIDTH, from);
        } else {
          for (int row = 0; row < count; ++row, from += problem.stride_row) copy_row(to + row * WIDTH, from);
        }
      } else {
        // Lanes beside each other take columns beside each other, except where others take theirs at once.
        const int step = wide_in ? 1 : LANES, column_begin = wide_in ? lane * C : lane;
        const int column_end = wide_in ? lane * C + C : WIDTH;
        for (int row = 0; row < count; ++row, from += problem.stride_row)
          for (int column = column_begin; column < column_end; column += step) {
            const int source = min(column, columns - 1);
            if (column < columns + C && in_band(begin + row, column))
              copy_later<1>(to + row * WIDTH + column, from + source * problem.stride_column);
            else to[row * WIDTH + column] = column < columns ? infinity<Cost>() : Cost(0);
          }
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ void copy_row(Cost* to, const Cost* from) const {
#pragma unroll
    for (int c = 0; c < C; c += AT_ONCE) copy_later<AT_ONCE>(to + c, from + c);
  }

  // The results of a chunk of rows into the matrix: as they are, or times `factor`, where zeros stay zeros whatever it is,
  // or NaN. All lanes.
  enum Finish { AS_THEY_ARE, TIMES, NAN_INSTEAD };
  __device__ __forceinline__ void write_out(int chunk, Finish finish, Cost factor) const {
    const int begin = chunk * ROWS, count = min(rows - begin, ROWS);
    const Cost* from = chunk_at(chunk);
    Cost* to = out + begin * problem.dense_row;
    const bool in_turn = wide_out && finish == AS_THEY_ARE;
    if (in_turn && (lane + 1) * C <= columns) {
      from += lane * C;
      to += lane * C;
      if (count == ROWS) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row, to += problem.dense_row) put_row(to, from + row * WIDTH);
      } else {
        for (int row = 0; row < count; ++row, to += problem.dense_row) put_row(to, from + row * WIDTH);
      }
      return;
    }
    const int step = in_turn ? 1 : LANES, column_begin = in_turn ? lane * C : lane;
    const int column_end = in_turn ? lane * C + C : WIDTH;
    for (int row = 0; row < count; ++row, to += problem.dense_row)
      for (int column = column_begin; column < column_end; column += step) {
        if (column >= columns || !in_band(begin + row, column)) continue;
        Cost result = from[row * WIDTH + column];
        if (finish == TIMES && result != Cost(0)) result *= factor;
        if (finish == NAN_INSTEAD) result = Cost(not_a_number());
        to[column * problem.dense_column] = result;
      }
  }

  __device__ __forceinline__ void put_row(Cost* to, const Cost* from) const {
    typedef Vector<Cost, AT_ONCE> V;
#pragma unroll
    for (int c = 0; c < C; c += AT_ONCE) *reinterpret_cast<V*>(to + c) = *reinterpret_cast<const V*>(from + c);
  }
};
