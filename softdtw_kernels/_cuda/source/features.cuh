// Costs of a strip computed from features, and gradients of the features from the expected visits E, a chunk of rows at
// a time, by the workers: warps beside the one that sweeps.
//
// Costs and visits share a ring of rows in memory, WIDTH columns wide. A chunk of rows is born as costs; the sweep
// replaces the cost of a cell, once it is done with it, by the cell's visits; then these flow into the gradients. So no
// matrix is ever stored. Each worker copies the vectors it needs into a stage of its own in shared memory, DEPTH
// features at a time, so workers need not wait for each other.
//
// Squared distances and their gradient 2 E (x - y) come from differences: nothing cancels where x is near y or both are
// far from the origin. Sums run in a fixed order.
#pragma once
#include "sweeps.cuh"

#define SOFTDTW_FEATURE_FIELDS(X)                                                                     \
  X(const void*, x)                 /* (*, N, packs of 16 bytes), aligned to them; strides count packs */ \
  X(int64, x_b0)                                                                                      \
  X(int64, x_b1)                                                                                      \
  X(int64, x_b2)                                                                                      \
  X(int64, x_row)                                                                                     \
  X(const void*, y)                                                                                   \
  X(int64, y_b0)                                                                                      \
  X(int64, y_b1)                                                                                      \
  X(int64, y_b2)                                                                                      \
  X(int64, y_row)                                                                                     \
  X(int64, packs)                   /* of a vector, zeros where it has no more features */            \
  X(void*, grad_x)                  /* out, contiguous (pairs, N, packs), 0 at first; null: not wanted */ \
  X(void*, grad_y)                  /* (pairs, M, packs) */                                           \
  X(int*, grad_x_progress)          /* (pairs, strips): rows of grad_x done, 0 at first */            \
  X(void*, rings)                   /* null: the ring lies in shared memory */

struct FeatureProblem : Problem {
  SOFTDTW_FEATURE_FIELDS(SOFTDTW_FIELD)
};

// 16 bytes of features.
template <typename T>
struct alignas(16) Pack {
  static constexpr int LENGTH = 16 / sizeof(T);
  T v[LENGTH];
};

// The ring as the sweep of a strip sees it; see Strip for the interface.
template <typename Cost, int ROWS, int PITCH>
struct RingCells {
  static constexpr bool STAGED = false, OF_MATRICES = false;
  static constexpr bool TAKE_ALL = true;  // E is 0 outside the band, where the ring would hold a cost otherwise
  Cost* ring;
  int first_column;

  __device__ __forceinline__ void select(int, int, int column) { first_column = column; }
  __device__ __forceinline__ void start_results(int64) {}
  __device__ __forceinline__ int place(int row) const { return (row % ROWS + (row < 0 ? ROWS : 0)) % ROWS * PITCH; }
  __device__ __forceinline__ int next(int place) const { return place == (ROWS - 1) * PITCH ? 0 : place + PITCH; }
  __device__ __forceinline__ int previous(int place) const { return place == 0 ? (ROWS - 1) * PITCH : place - PITCH; }
  __device__ __forceinline__ Cost load(int place, int, int column) const { return ring[place + column - first_column]; }
  __device__ __forceinline__ void store(int place, int, int column, Cost result) const {
    ring[place + column - first_column] = result;
  }
};

constexpr int WORKERS = 4;  // warps
constexpr int STAGE_PACKS = 4;
constexpr int STAGE_PITCH = STAGE_PACKS + 1;  // packs; odd, so that neighboring vectors start in different banks

// COST: of features and gradients. WIDTH columns, chunks of CHUNK rows. DISTANCE: squared distances, else minus the dot
// product.
template <typename Cost, int WIDTH, int CHUNK, bool DISTANCE>
struct Worker {
  using P = Pack<Cost>;
  static constexpr int LENGTH = P::LENGTH;
  static constexpr int MANY = LANES, FEW = sizeof(Cost) == 4 ? 8 : 4;  // vectors of either side in a stage
  static constexpr int STAGE = (MANY + FEW) * STAGE_PITCH;             // packs
  // Row chunks in use at a time, while a tile of CHUNK steps is swept: those its lanes are in, which reach LANES - 1 rows
  // back, one whose costs are computed, one whose visits are summed.
  static constexpr int REACH = (LANES + CHUNK - 1) / CHUNK;
  static constexpr int RING_CHUNKS = REACH + 3, RING_ROWS = RING_CHUNKS * CHUNK;
  // A lane's cells of neighboring rows lie in neighboring columns too: one pack more a row keeps their banks apart.
  static constexpr int PITCH = WIDTH + LENGTH;
  static constexpr int ROWS_EACH = FEW / 2, COLUMNS_EACH = 2;  // cells of a lane in a product of FEW rows and MANY columns
  static_assert(CHUNK % FEW == 0 && (CHUNK % MANY == 0 || CHUNK < MANY) && WIDTH % MANY == 0, "");
  static_assert(ROWS_EACH * COLUMNS_EACH * LANES == FEW * MANY, "");

  const FeatureProblem& problem;
  Cost* ring;
  P *few, *many;  // the stage
  const P *x, *y;  // of the item, from the strip's first row and column on
  P *grad_x, *grad_y;
  int rows, columns;  // of the strip
  int lane, worker;

  __device__ __forceinline__ Worker(const FeatureProblem& problem, Cost* ring, unsigned char* stages, int worker)
      : problem(problem), ring(ring), lane(threadIdx.x % LANES), worker(worker) {
    few = reinterpret_cast<P*>(stages) + worker * STAGE;
    many = few + FEW * STAGE_PITCH;
  }

  __device__ __forceinline__ void select(int64 pair, int first_row, int last_row, int first_column, int last_column) {
    const Batch::Place at = problem.place_of(pair);
    rows = last_row - first_row;
    columns = last_column - first_column;
    x = static_cast<const P*>(problem.x) + (at.b0 * problem.x_b0 + at.b1 * problem.x_b1 + at.b2 * problem.x_b2 + first_row * problem.x_row);
    y = static_cast<const P*>(problem.y) + (at.b0 * problem.y_b0 + at.b1 * problem.y_b1 + at.b2 * problem.y_b2 + first_column * problem.y_row);
    grad_x = static_cast<P*>(problem.grad_x) + (pair * problem.rows + first_row) * problem.packs;
    grad_y = static_cast<P*>(problem.grad_y) + (pair * problem.columns + first_column) * problem.packs;
  }

  __device__ __forceinline__ bool has_chunk(int chunk) const { return 0 <= chunk && chunk * CHUNK < rows; }
  __device__ __forceinline__ Cost* chunk_at(int chunk) const { return ring + chunk % RING_CHUNKS * (CHUNK * PITCH); }

  // STAGE_PACKS packs of COUNT vectors, of which `valid` exist; zeros in place of the others.
  template <int COUNT>
  __device__ __forceinline__ void copy(P* to, const P* from, int64 pitch, int valid, int first_pack) const {
#pragma unroll 2
    for (int k = lane; k < COUNT * STAGE_PACKS; k += LANES) {
      const int vector = k / STAGE_PACKS, pack = k % STAGE_PACKS;
      P value = {};
      if (vector < valid && first_pack + pack < problem.packs) value = from[vector * pitch + first_pack + pack];
      to[vector * STAGE_PITCH + pack] = value;
    }
  }

  // FEW vectors from `a` on and MANY from `b` on into the stage. All lanes.
  template <int MANY_HERE>
  __device__ __forceinline__ void fill(const P* a, int64 a_pitch, int a_valid, const P* b, int64 b_pitch, int b_valid,
                                       int first_pack) const {
    __syncwarp();  // the stage may still be read
    copy<FEW>(few, a, a_pitch, a_valid, first_pack);
    copy<MANY_HERE>(many, b, b_pitch, b_valid, first_pack);
    __syncwarp();
  }

  // The costs of a chunk of rows, 0 where the strip has no cell: such cells keep this as their visits.
  __device__ __forceinline__ void produce(int chunk) const {
    if (!has_chunk(chunk)) return;
    constexpr int ROW_BLOCKS = CHUNK / FEW;
    for (int block = worker; block < ROW_BLOCKS * (WIDTH / MANY); block += WORKERS) {
      const int row = chunk * CHUNK + block % ROW_BLOCKS * FEW, column = block / ROW_BLOCKS * MANY;
      const int my_row = lane / (LANES / 2), my_column = lane % (LANES / 2);
      Cost sums[ROWS_EACH][COLUMNS_EACH] = {};
      for (int first_pack = 0; first_pack < problem.packs; first_pack += STAGE_PACKS) {
        fill<MANY>(x + row * problem.x_row, problem.x_row, rows - row, y + column * problem.y_row, problem.y_row,
                   columns - column, first_pack);
#pragma unroll 1
        for (int pack = 0; pack < STAGE_PACKS; ++pack) {
          P xs[ROWS_EACH], ys[COLUMNS_EACH];
#pragma unroll
          for (int i = 0; i < ROWS_EACH; ++i) xs[i] = few[(my_row + 2 * i) * STAGE_PITCH + pack];
#pragma unroll
          for (int j = 0; j < COLUMNS_EACH; ++j) ys[j] = many[(my_column + LANES / 2 * j) * STAGE_PITCH + pack];
#pragma unroll
          for (int k = 0; k < LENGTH; ++k)
#pragma unroll
            for (int i = 0; i < ROWS_EACH; ++i)
#pragma unroll
              for (int j = 0; j < COLUMNS_EACH; ++j) {
                if (DISTANCE) {
                  const Cost difference = xs[i].v[k] - ys[j].v[k];
                  sums[i][j] = fma(difference, difference, sums[i][j]);
                } else {
                  sums[i][j] = fma(-xs[i].v[k], ys[j].v[k], sums[i][j]);
                }
              }
        }
      }
      Cost* out = chunk_at(chunk) + block % ROW_BLOCKS * FEW * PITCH + column;
#pragma unroll
      for (int i = 0; i < ROWS_EACH; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS_EACH; ++j) {
          const int r = my_row + 2 * i, c = my_column + LANES / 2 * j;
          out[r * PITCH + c] = row + r < rows && column + c < columns ? sums[i][j] : Cost(0);
        }
    }
  }

  // sum += visits * d(cost)/d(own), up to the factor 2 or -1 that `add` brings.
  static __device__ __forceinline__ void accumulate(P& sum, Cost visits, const P& own, const P& other) {
#pragma unroll
    for (int k = 0; k < LENGTH; ++k)
      sum.v[k] = fma(visits, DISTANCE ? own.v[k] - other.v[k] : other.v[k], sum.v[k]);
  }

  static __device__ __forceinline__ void add(P* to, const P& sum) {
    P value = *to;
#pragma unroll
    for (int k = 0; k < LENGTH; ++k) value.v[k] = fma(DISTANCE ? Cost(2) : Cost(-1), sum.v[k], value.v[k]);
    *to = value;
  }

  // What a chunk of rows adds to their grad_x, after the strip on the right has added its part.
  __device__ __forceinline__ void sum_into_x(int chunk) const {
    const Cost* visits = chunk_at(chunk);
    const int vector = lane / STAGE_PACKS, pack = lane % STAGE_PACKS;  // of the lane's sum
    const bool mine = vector < FEW;
    for (int block = worker; block < CHUNK / FEW; block += WORKERS) {
      const int row = chunk * CHUNK + block * FEW;
      const Cost* of_block = visits + block * FEW * PITCH;
      if (row >= rows || all_zero<FEW, WIDTH>(of_block)) continue;
      for (int first_pack = 0; first_pack < problem.packs; first_pack += STAGE_PACKS) {
        P sum = {};
        for (int column = 0; column < columns; column += MANY) {
          fill<MANY>(x + row * problem.x_row, problem.x_row, rows - row, y + column * problem.y_row, problem.y_row,
                     columns - column, first_pack);
          if (!mine) continue;
          const P own = few[vector * STAGE_PITCH + pack];
#pragma unroll 1
          for (int j = 0; j < MANY; j += LENGTH) {
            const P e = *reinterpret_cast<const P*>(of_block + vector * PITCH + column + j);
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) accumulate(sum, e.v[k], own, many[(j + k) * STAGE_PITCH + pack]);
          }
        }
        if (mine && row + vector < rows && first_pack + pack < problem.packs)
          add(grad_x + (row + vector) * problem.packs + first_pack + pack, sum);
      }
    }
  }

  // grad_y of the strip's columns: what a chunk of rows adds. The same lane adds to the same place for every chunk.
  __device__ __forceinline__ void sum_into_y(int chunk) const {
    constexpr int MANY_ROWS = CHUNK < MANY ? CHUNK : MANY;
    const Cost* visits = chunk_at(chunk);
    const int vector = lane / STAGE_PACKS, pack = lane % STAGE_PACKS;
    const bool mine = vector < FEW;
    for (int column = worker * FEW; column < columns; column += WORKERS * FEW) {
      if (all_zero<CHUNK, FEW>(visits + column)) continue;
      for (int first_pack = 0; first_pack < problem.packs; first_pack += STAGE_PACKS) {
        P sum = {};
        for (int part = 0; part < CHUNK && chunk * CHUNK + part < rows; part += MANY_ROWS) {
          const int row = chunk * CHUNK + part;
          fill<MANY_ROWS>(y + column * problem.y_row, problem.y_row, columns - column, x + row * problem.x_row,
                          problem.x_row, rows - row, first_pack);
          if (!mine) continue;
          const P own = few[vector * STAGE_PITCH + pack];
#pragma unroll 2
          for (int i = 0; i < MANY_ROWS; ++i)
            accumulate(sum, visits[(part + i) * PITCH + column + vector], own, many[i * STAGE_PITCH + pack]);
        }
        if (mine && column + vector < columns && first_pack + pack < problem.packs)
          add(grad_y + (column + vector) * problem.packs + first_pack + pack, sum);
      }
    }
  }

  // Whether no path visits any of H x W cells: far from the diagonal that is the usual case. All lanes.
  template <int H, int W>
  __device__ __forceinline__ bool all_zero(const Cost* visits) const {
    bool some = false;
    for (int k = lane; k < H * W; k += LANES) some |= visits[k / W * PITCH + k % W] != Cost(0);
    return !__any_sync(FULL_WARP, some);
  }
};
