// Squared Euclidean distances |x_i - y_j|^2 of (*, N, D) and (*, M, D), by differences: x^2 + y^2 - 2xy would lose the
// small ones. A block does a tile of 64 x 64 distances, a thread 4 x 4 of them, over 16 features at a time, which pass
// through shared memory. WITH_COST: float or double.
#include "portability.cuh"

#define SOFTDTW_DISTANCE_FIELDS(X)                                              \
  X(const void*, x)                                                             \
  X(const void*, y)                                                             \
  X(void*, out)        /* contiguous (pairs, rows, columns) */                  \
  X(int64, pairs)                                                               \
  X(int64, batch1)                                                              \
  X(int64, batch2)                                                              \
  X(int64, rows)                                                                \
  X(int64, columns)                                                             \
  X(int64, features)                                                            \
  X(int64, x_b0)                                                         \
  X(int64, x_b1)                                                         \
  X(int64, x_b2)                                                         \
  X(int64, x_row)                                                        \
  X(int64, x_column)                                                    \
  X(int64, y_b0)                                                         \
  X(int64, y_b1)                                                         \
  X(int64, y_b2)                                                         \
  X(int64, y_row)                                                        \
  X(int64, y_column)

typedef WITH_COST COST;

struct Distances {
  SOFTDTW_DISTANCE_FIELDS(SOFTDTW_FIELD)
};

constexpr int TILE = 64, DEPTH = 16, EACH = 4, THREADS_IN_ROW = TILE / EACH, THREADS = 256;
constexpr int PITCH = TILE + 1;  // off the power of two: rows of the tile start in different banks

// Features [first, first + DEPTH) of 64 rows, zero where there are none: tile[feature * PITCH + row].
__device__ __forceinline__ void load_tile(COST* tile, const COST* from, int64 row, int64 rows, int64 first,
                                          int64 features, int64 stride_row, int64 stride_feature) {
  for (int k = threadIdx.x; k < TILE * DEPTH; k += THREADS) {
    const int feature = k % DEPTH, r = k / DEPTH;
    const bool inside = row + r < rows && first + feature < features;
    tile[feature * PITCH + r] = inside ? from[(row + r) * stride_row + (first + feature) * stride_feature] : COST(0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) distances(const __grid_constant__ Distances given) {
  const int64 rows = given.rows, columns = given.columns, features = given.features;
  const int64 tiles_in_row = (columns + TILE - 1) / TILE, tiles = (rows + TILE - 1) / TILE * tiles_in_row;
  const int64 p = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64 row = tile / tiles_in_row * TILE, column = tile % tiles_in_row * TILE;
  const int64 b2 = p % given.batch2, b1 = p / given.batch2 % given.batch1, b0 = p / given.batch2 / given.batch1;
  const COST* x_here = static_cast<const COST*>(given.x) + (b0 * given.x_b0 + b1 * given.x_b1 + b2 * given.x_b2);
  const COST* y_here = static_cast<const COST*>(given.y) + (b0 * given.y_b0 + b1 * given.y_b1 + b2 * given.y_b2);
  DYNAMIC_SHARED(shared);
  COST* x_tile = reinterpret_cast<COST*>(shared);
  COST* y_tile = x_tile + DEPTH * PITCH;
  const int my_row = threadIdx.x / THREADS_IN_ROW, my_column = threadIdx.x % THREADS_IN_ROW;
  COST sums[EACH][EACH] = {};
  for (int64 first = 0; first < features; first += DEPTH) {
    load_tile(x_tile, x_here, row, rows, first, features, given.x_row, given.x_column);
    load_tile(y_tile, y_here, column, columns, first, features, given.y_row, given.y_column);
    __syncthreads();
#pragma unroll
    for (int feature = 0; feature < DEPTH; ++feature) {
      COST xs[EACH], ys[EACH];
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        xs[k] = x_tile[feature * PITCH + my_row + k * THREADS_IN_ROW];
        ys[k] = y_tile[feature * PITCH + my_column + k * THREADS_IN_ROW];
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          const COST difference = xs[i] - ys[j];
          sums[i][j] = fma(difference, difference, sums[i][j]);
        }
    }
    __syncthreads();  // before the tile is overwritten
  }
  COST* out_here = static_cast<COST*>(given.out) + p * rows * columns;
#pragma unroll
  for (int i = 0; i < EACH; ++i)
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const int64 r = row + my_row + i * THREADS_IN_ROW, c = column + my_column + j * THREADS_IN_ROW;
      if (r < rows && c < columns) out_here[r * columns + c] = sums[i][j];
    }
}
