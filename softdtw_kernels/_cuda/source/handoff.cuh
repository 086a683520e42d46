// How strips that wait for each other hand on what flows over the border between them.
//
// By flags: plain stores, then a flag that tells how many rows are done, released; the other strip acquires it, then loads.
// In a block this costs little. Between blocks a release waits until all stores of the warp have reached the L2 cache, and
// an acquire gives up what the L1 cache holds.
//
// By words that carry their own flag: 8 bytes, one relaxed store each, in memory that is 0 at first. THERE is set in what is
// stored: the sign of its first number, which is not negative. Who waits polls the word itself. Nothing else is ordered by
// this, and nothing else is needed: all that a strip of another block is told is in those 8 bytes.
#pragma once
#include "portability.cuh"

#ifndef FLAGS_IN_BLOCK
#define FLAGS_IN_BLOCK 1  // 0 where no two strips share a block: what would choose at run time takes registers
#endif

constexpr uint64 THERE = uint64(1) << 31;

__device__ __forceinline__ bool is_there(uint64 word) { return word & THERE; }

// Any type of 8 bytes as they are.
template <typename T>
union AsWord {
  uint64 word;
  T value;
  __device__ AsWord() {}
};

template <typename T>
__device__ __forceinline__ uint64 word_of(const T& value) {
  static_assert(sizeof(T) == 8, "what one access takes");
  AsWord<T> both;
  both.value = value;
  return both.word | THERE;
}

template <typename T>
__device__ __forceinline__ T from_word(uint64 word) {
  AsWord<T> both;
  both.word = word & ~THERE;
  return both.value;
}

// The progress of a strip that another warp may wait for. A bool says whether any warp does. A null pointer can't: where a
// condition sets a pointer to null, ptxas 13.0 may test it before it is set (seen on an H200).
struct Flag {
  int* rows;
  bool used, in_block;  // in shared memory

  __device__ __forceinline__ int read() const { return FLAGS_IN_BLOCK && in_block ? load_acquire_in_block(rows) : load_acquire(rows); }
  __device__ __forceinline__ int look() const { return FLAGS_IN_BLOCK && in_block ? load_acquire_in_block(rows) : load_relaxed(rows); }
  __device__ __forceinline__ void write(int done) const {
    if (FLAGS_IN_BLOCK && in_block) store_release_in_block(rows, done);
    else store_release(rows, done);
  }
};

struct AwaitRows {
  Flag flag;
  int seen;          // of the last look, which often is enough for several chunks
  uint64 ahead = 0;  // of the chunk that comes next, if it was there when this one began

  __device__ __forceinline__ AwaitRows(const Flag& flag) : flag(flag), seen(flag.used ? 0 : 0x7fffffff) {}

  // Polls are relaxed: each one that acquires would empty the L1 cache.
  __device__ __forceinline__ void operator()(int rows) {
    while (seen < rows) {
      seen = flag.read();
      if (seen >= rows) return;
      do pause_while_polling();
      while (flag.look() < rows);
    }
  }

  // A word for each lane: starts a load, and waits for what it brings. Words from another block say whether they are there;
  // others are, once so many rows are done, of which a flag in shared memory tells at once.
  __device__ __forceinline__ void ask(const uint64* place, bool wanted, bool is_outside, int rows) {
    ahead = THERE;
    if (!wanted) return;
    if (is_outside) {
      ahead = load_relaxed(place);
      return;
    }
    if (seen < rows && flag.in_block) seen = flag.read();
    ahead = seen >= rows ? *place : 0;
  }
  __device__ __forceinline__ uint64 take(const uint64* place, bool wanted, bool is_outside, int rows) {
    while (!is_there(ahead)) {  // which it is where none is wanted
      if (is_outside) {
        pause_while_polling();
        ahead = load_relaxed(place);
      } else {
        (*this)(rows);
        ahead = *place | THERE;
      }
    }
    return ahead;
  }
};

struct PublishRows {
  Flag flag;
  __device__ __forceinline__ void operator()(int rows) const {
    if (flag.used) flag.write(rows);
  }
};
