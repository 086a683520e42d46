// What the kernels need beyond CUDA's own names, in the two places they are compiled:
// by NVRTC for a GPU, and by a C++ compiler for the emulator of tests/cuda_emulator (SOFTDTW_EMULATOR),
// whose header defines threadIdx, __shfl_sync and the rest. Neither C nor CUDA headers are included here:
// NVRTC has none of the former.
#pragma once

typedef long long int64;
typedef unsigned long long uint64;

#define SOFTDTW_FIELD(type, name) type name;  // of a list of fields, in the struct that a kernel takes

#define FULL_WARP 0xffffffffu
constexpr int LANES = 32;

// What memory gives at once.
template <typename T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Vector {
  T v[N];
};

#ifdef SOFTDTW_EMULATOR

#define DYNAMIC_SHARED(name) unsigned char* name = emulator_dynamic_shared()

inline int load_acquire(const int* address) { return emulator_load_as(address, EMULATE_ORDERED, EMULATE_DEVICE); }
inline void store_release(int* address, int value) { emulator_store_as(address, value, EMULATE_ORDERED, EMULATE_DEVICE); }
inline int load_acquire_in_block(const int* address) { return emulator_load_as(address, EMULATE_ORDERED, EMULATE_BLOCK); }
inline void store_release_in_block(int* address, int value) { emulator_store_as(address, value, EMULATE_ORDERED, EMULATE_BLOCK); }
inline int load_relaxed(const int* address) { return emulator_load_as(address, EMULATE_RELAXED, EMULATE_DEVICE); }
inline uint64 load_relaxed(const uint64* address) { return emulator_load_as(address, EMULATE_RELAXED, EMULATE_DEVICE); }
inline void store_relaxed(uint64* address, uint64 value) { emulator_store_as(address, value, EMULATE_RELAXED, EMULATE_DEVICE); }
inline void pause_while_polling() { emulator_yield(); }
// As the instructions on a GPU: what is subnormal is 0, given or found. Thus the reciprocal is 0 beyond 2^126 and infinite
// below 2^-126, and by a power of 2 that is 0 Narrow sees that a number is lost.
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline float reciprocal(float x) { return flushed(1.0f / flushed(x)); }
inline float fast_exp2(float x) { return flushed(std::exp2(flushed(x))); }
inline float fast_log2(float x) { return std::log2(flushed(x)); }
inline unsigned absolute_difference(unsigned x, unsigned y, unsigned z) { return (x > y ? x - y : y - x) + z; }
inline int atomic_add(int* address, int value) { return emulator_atomic_add(address, value); }
inline void atomic_or(int* address, int value) { emulator_atomic_or(address, value); }
inline int64 cycles() {  // of a clock that goes on by one each time somebody looks at it
  static int64 now;
  return ++now;
}
inline void count_up(uint64* address, uint64 value) { *address += value; }
inline void meet() { emulator_syncthreads(); }
template <int N, typename T>
inline void copy_later(T* to, const T* from) { emulator_copy_later(reinterpret_cast<Vector<T, N>*>(to), reinterpret_cast<const Vector<T, N>*>(from)); }
inline void commit_copies() { emulator_commit_copies(); }
template <int GROUPS>
inline void await_copies() { emulator_await_copies(GROUPS); }

#else

// 16 bytes is the widest access made to it.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(int* address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// These order nothing else. 8 bytes are read and written as a whole.
__device__ __forceinline__ int load_relaxed(const int* address) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ uint64 load_relaxed(const uint64* address) {
  uint64 value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(uint64* address, uint64 value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

// Between warps of one block, by way of shared memory: a tenth of the latency.
__device__ __forceinline__ int load_acquire_in_block(const int* address) {
  int value;
  unsigned place = unsigned(__cvta_generic_to_shared(address));
  asm volatile("ld.acquire.cta.shared.s32 %0, [%1];" : "=r"(value) : "r"(place) : "memory");
  return value;
}

__device__ __forceinline__ void store_release_in_block(int* address, int value) {
  unsigned place = unsigned(__cvta_generic_to_shared(address));
  asm volatile("st.release.cta.shared.s32 [%0], %1;" ::"r"(place), "r"(value) : "memory");
}

__device__ __forceinline__ void pause_while_polling() { __nanosleep(32); }

// To two units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// To 2^-22, of the result or in absolute terms, whichever is more; 0 at 1.
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// |x - y| + z
__device__ __forceinline__ unsigned absolute_difference(unsigned x, unsigned y, unsigned z) { return __usad(x, y, z); }

// To one unit in the last place; 0 beyond 2^126, where it is subnormal, and infinite of what is subnormal itself.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ int atomic_add(int* address, int value) { return atomicAdd(address, value); }
__device__ __forceinline__ void atomic_or(int* address, int value) { atomicOr(address, value); }
__device__ __forceinline__ int64 cycles() { return clock64(); }
__device__ __forceinline__ void count_up(uint64* address, uint64 value) { atomicAdd(address, value); }

// A barrier of the whole block at which warps may arrive from different places of the program: __syncthreads promises
// this only for one and the same place.
__device__ __forceinline__ void meet() { asm volatile("barrier.sync 0;" ::: "memory"); }

// Starts to copy N elements, 4, 8 or 16 bytes and aligned to as many, from global to shared memory. They are there, for
// the thread itself, after an await_copies that leaves fewer groups open than have been committed since.
template <int N, typename T>
__device__ __forceinline__ void copy_later(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
  constexpr int bytes = N * int(sizeof(T));
  unsigned place = unsigned(__cvta_generic_to_shared(to));
  if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(bytes) : "memory");
#else
  *reinterpret_cast<Vector<T, N>*>(to) = *reinterpret_cast<const Vector<T, N>*>(from);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all groups but the last few are there.
template <int GROUPS>
__device__ __forceinline__ void await_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

#endif

__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

// 2^125: the reciprocal of a float32 up to that is not 0.
constexpr float LARGEST_DIVISOR = 4.2535296e37f;

template <typename T>
__device__ __forceinline__ T infinity();
template <>
__device__ __forceinline__ float infinity<float>() { return __int_as_float(0x7f800000); }
template <>
__device__ __forceinline__ double infinity<double>() { return __longlong_as_double(0x7ff0000000000000LL); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }

// Shuffles of any type made of 4-byte words. All lanes of the warp take part.
template <typename T, typename Shuffle>
__device__ __forceinline__ T shuffle_words(const T& value, Shuffle shuffle) {
  static_assert(sizeof(T) % 4 == 0, "a whole number of words");
  union Words {
    T value;
    unsigned word[sizeof(T) / 4];
    __device__ Words() {}
  } in, out;
  in.value = value;
#pragma unroll
  for (int k = 0; k < int(sizeof(T) / 4); ++k) out.word[k] = shuffle(in.word[k]);
  return out.value;
}

template <typename T>
__device__ __forceinline__ T from_lane_below(const T& value) {  // lane l gets lane l - 1's; lane 0 its own
  return shuffle_words(value, [](unsigned w) { return __shfl_up_sync(FULL_WARP, w, 1); });
}

template <typename T>
__device__ __forceinline__ T from_lane_above(const T& value) {  // lane l gets lane l + 1's; lane 31 its own
  return shuffle_words(value, [](unsigned w) { return __shfl_down_sync(FULL_WARP, w, 1); });
}

template <typename T>
__device__ __forceinline__ T from_lane(const T& value, int lane) {
  return shuffle_words(value, [lane](unsigned w) { return __shfl_sync(FULL_WARP, w, lane); });
}

// The sum over the warp in a fixed order, the same on every lane.
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) {
    double other = shuffle_words(x, [offset](unsigned w) { return __shfl_xor_sync(FULL_WARP, w, offset); });
    x += other;
  }
  return x;
}
