// What the emulator of tests/cuda_emulator counts for its tests, by warp. A GPU counts nothing.
//
// And what a chunk of the forward sweep takes, part by part, for benchmarks/gpu_stamps.py, which compiles WITH_STAMPS: cycles
// between one mark and the next, as lane 0 sees them, summed up over all warps of a device. Other builds have no marks.
#pragma once
#include "portability.cuh"

enum Noted { CHUNK_FETCHED, CHUNK_RECOMPUTED, CHUNK_VISITED, CHUNK_PASSED };

#ifdef SOFTDTW_EMULATOR
inline void note(Noted what) { emulator_count(what); }
#else
__device__ __forceinline__ void note(Noted) {}
#endif

enum Part { COPIES_AWAITED, BORDER_AWAITED, BORDER_LOADED, CHECKPOINT_KEPT, ROWS_SWEPT, BORDER_HANDED_ON, PARTS_OF_CHUNK };

#ifdef WITH_STAMPS
extern "C" __device__ uint64 softdtw_stamps[2 * PARTS_OF_CHUNK] = {};  // cycles, and how often

struct Stamps {
  int64 before;
  __device__ __forceinline__ void begin() { before = cycles(); }
  __device__ __forceinline__ void mark(Part part) {
    const int64 taken = cycles() - before;
    if (threadIdx.x % LANES == 0) {
      count_up(&softdtw_stamps[2 * part], uint64(taken));
      count_up(&softdtw_stamps[2 * part + 1], 1);
    }
    begin();  // what marks take is not counted
  }
};
#define STAMPS Stamps stamps;
#define BEGIN_STAMPS(state) state.stamps.begin()
#define STAMP(state, part) state.stamps.mark(part)
#else
#define STAMPS
#define BEGIN_STAMPS(state)
#define STAMP(state, part)
#endif
