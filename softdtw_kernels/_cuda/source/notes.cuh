// What the emulator of tests/cuda_emulator counts for its tests, by warp. A GPU counts nothing.
#pragma once

enum Noted { CHUNK_FETCHED, CHUNK_RECOMPUTED, CHUNK_VISITED, CHUNK_PASSED };

#ifdef SOFTDTW_EMULATOR
inline void note(Noted what) { emulator_count(what); }
#else
__device__ __forceinline__ void note(Noted) {}
#endif
