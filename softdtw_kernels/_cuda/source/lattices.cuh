// The facts of softdtw_kernels/_lattice.py for kernels: sizes, bands, and which cells are pairs of frames.
//
// The weak lattice has a row of dummy cells before, between and after the rows of the cost, and columns likewise: its odd-odd
// cells are the pairs. The sweeps of strip.cuh, cells.cuh and tiny.cuh step through both lattices by WEAK itself, where a step
// must cost nothing; what does not step asks here.
#pragma once
#include "problem.cuh"

template <bool WEAK>
struct Lattice {
  // Rows of the lattice, of those of the cost; columns likewise.
  template <typename Int>
  static __device__ __forceinline__ Int size_of(Int rows) { return WEAK ? 2 * rows + 1 : rows; }
  static __device__ __forceinline__ bool is_dummy(int row, int column) {
    return WEAK && !(row % 2 == 1 && column % 2 == 1);
  }
  // The row of the cost that one of the lattice is; of all rows, how many. Columns likewise.
  static __device__ __forceinline__ int of_cost(int row) { return WEAK ? row / 2 : row; }
};

// One item: its lengths, as rows and columns of the lattice, and its band lowest <= column - row <= highest.
template <bool WEAK>
struct Item {
  int64 pair;
  int n, m, lowest, highest;
  int status;

  __device__ __forceinline__ Item(const Batch& problem, int64 p) : pair(p), status(FINE) {
    int64 rows = problem.x_lengths ? problem.x_lengths[p * problem.x_lengths_stride] : problem.rows;
    int64 columns = problem.y_lengths ? problem.y_lengths[p * problem.y_lengths_stride] : problem.columns;
    if (rows < 1 || rows > problem.rows || columns < 1 || columns > problem.columns) {
      status = NOT_A_NUMBER;
      rows = problem.rows;  // the whole item becomes NaN
      columns = problem.columns;
    }
    n = int(Lattice<WEAK>::size_of(rows));
    m = int(Lattice<WEAK>::size_of(columns));
    lowest = -n;
    highest = m;
    // A band wider than the lattice is no band; the comparison keeps the sums below within 32 bits.
    if (!WEAK && problem.bandwidth >= 0 && problem.bandwidth < int64(n) + m) {
      lowest = min(0, m - n) - int(problem.bandwidth);
      highest = max(0, m - n) + int(problem.bandwidth);
    }
  }

  __device__ __forceinline__ bool in_band(int row, int column) const {
    return lowest <= column - row && column - row <= highest;
  }
  __device__ __forceinline__ bool has_band() const { return lowest > -n || highest < m; }
  // The rows [first, last) in which columns [begin, end) meet the band. Not empty: the band crosses every column.
  __device__ __forceinline__ int first_row(int begin) const { return max(0, begin - highest); }
  __device__ __forceinline__ int last_row(int end) const { return min(n, min(end, m) - lowest); }
};
