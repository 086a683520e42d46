// CUDA's names for a C++ compiler: included before a kernel's source, which it then compiles unchanged.
//
// Every CUDA thread is a fiber; emulator.cpp runs them, switching at barriers, warp intrinsics and polls only.
// All functions below that are not inline belong to the runtime and are never instrumented.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define SOFTDTW_EMULATOR 1
#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __restrict__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct EmulatorIndex {
  unsigned x, y, z;
};

struct EmulatorThread {
  EmulatorIndex thread, block, threads, blocks;
};

extern "C" {
extern EmulatorThread* emulator_current;
void emulator_syncthreads();
void emulator_yield();
unsigned emulator_warp(int operation, unsigned mask, unsigned value, int parameter, int width);
unsigned char* emulator_dynamic_shared();
uint64_t emulator_load(const void* address, int size, int acquire, int in_block);
void emulator_store(void* address, uint64_t value, int size, int release, int in_block);
void emulator_fence(int in_block);
int emulator_atomic_add(int* address, int value);
int emulator_atomic_or(int* address, int value);
void emulator_count(int what);
void emulator_push_copy(void* to, const void* bytes, int size);
void emulator_commit_copies();
int emulator_pop_copy(int groups, void** to, void* bytes);
}

enum EmulatorOrder { EMULATE_RELAXED, EMULATE_ORDERED };  // a load that acquires, a store that releases
enum EmulatorScope { EMULATE_DEVICE, EMULATE_BLOCK };

enum EmulatorOperation { EMULATE_SYNC, EMULATE_INDEX, EMULATE_UP, EMULATE_DOWN, EMULATE_XOR, EMULATE_BALLOT };

#define threadIdx (emulator_current->thread)
#define blockIdx (emulator_current->block)
#define blockDim (emulator_current->threads)
#define gridDim (emulator_current->blocks)

// Static __shared__ variables would need the compiler's help; the kernels use dynamic shared memory only.

inline void __syncthreads() { emulator_syncthreads(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator_warp(EMULATE_SYNC, mask, 0, 0, 32); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator_warp(EMULATE_BALLOT, mask, predicate != 0, 0, 32);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
inline T emulator_shuffle(int operation, unsigned mask, T value, int parameter, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
  unsigned words[sizeof(T) / 4];
  __builtin_memcpy(words, &value, sizeof(T));
  for (unsigned& word : words) word = emulator_warp(operation, mask, word, parameter, width);
  __builtin_memcpy(&value, words, sizeof(T));
  return value;
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emulator_shuffle(EMULATE_INDEX, mask, value, lane, width);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator_shuffle(EMULATE_UP, mask, value, int(delta), width);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator_shuffle(EMULATE_DOWN, mask, value, int(delta), width);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return emulator_shuffle(EMULATE_XOR, mask, value, lane_mask, width);
}

// An asynchronous copy may arrive at any time from its start to its wait. So its target is written twice: with NaN at the
// start, which whoever still needs what was there does not survive, and with the data at the wait.
template <typename V>
inline void emulator_copy_later(V* to, const V* from) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "what cp.async copies");
  V value = *from, poison;
  emulator_push_copy(to, &value, sizeof(V));
  __builtin_memset(&poison, 0xff, sizeof(V));
  *to = poison;
}
inline void emulator_await_copies(int groups) {
  void* to;
  unsigned words[4];
  while (int size = emulator_pop_copy(groups, &to, words))
    for (int k = 0; k < size / 4; ++k) static_cast<unsigned*>(to)[k] = words[k];
}

template <typename T>
inline T emulator_load_as(const T* address, EmulatorOrder order, EmulatorScope scope) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what is atomic");
  uint64_t bits = emulator_load(address, sizeof(T), order, scope);
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
inline void emulator_store_as(T* address, T value, EmulatorOrder order, EmulatorScope scope) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what is atomic");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  emulator_store(address, bits, sizeof(T), order, scope);
}

template <typename To, typename From>
inline To emulator_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  __builtin_memcpy(&out, &value, sizeof(To));
  return out;
}
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }

using std::abs;
using std::exp;
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::log;
using std::log2;
using std::max;
using std::min;
using std::rint;

// A kernel takes one struct, by value. Its entry says how large that is, or runs it.
template <typename Struct>
inline int64_t emulator_call(void (*kernel)(Struct), const void* argument) {
  if (argument) kernel(*static_cast<const Struct*>(argument));
  return sizeof(Struct);
}
#define EMULATOR_ENTRY(kernel) \
  extern "C" int64_t emulator_entry_##kernel(const void* argument) { return emulator_call(kernel, argument); }
