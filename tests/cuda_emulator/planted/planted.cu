// Small kernels that are right, or wrong in one way: what the emulator must see. KERNEL chooses, BUG plants.
typedef long long int64;

#if KERNEL == 0  // reverses a block's numbers through shared memory
__device__ void run(const double* in, double* out, int*, int64 n) {
  double* shared = reinterpret_cast<double*>(emulator_dynamic_shared());
  int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
#if BUG == 2  // writes one past the end of shared memory
  shared[t + 1] = in[i];
#else
  shared[t] = in[i];
#endif
#if BUG != 1  // no barrier
  __syncthreads();
#endif
#if BUG == 3  // a wrong index: the poison of a place that nobody wrote
  out[i] = shared[blockDim.x - t];
#elif BUG == 4  // global overrun
  out[i + 1] = shared[blockDim.x - 1 - t];
#else
  out[i] = shared[blockDim.x - 1 - t];
#endif
}

#elif KERNEL == 1  // the sum of a warp on every lane
__device__ void run(const double* in, double* out, int*, int64 n) {
  int t = threadIdx.x;
  double x = in[t];
#if BUG == 1  // divergent: half of the warp is elsewhere
  if (t < 16)
#endif
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
#if BUG == 2  // a lane that its mask does not name
  x = __shfl_sync(0x0000ffffu, x, 0);
#endif
#if BUG == 3  // from a lane outside of the mask
  if (t < 16) x = __shfl_sync(0x0000ffffu, x, 20);
#endif
#if BUG == 4  // lanes in different intrinsics
  if (t == 3) __syncwarp();
  else x = __shfl_sync(0xffffffffu, x, 0);
#endif
  out[t] = x;
}

#elif KERNEL == 2  // a ring of buffers in shared memory, one barrier for each pass: three are needed
#if BUG == 1
constexpr int BUFFERS = 2;
#else
constexpr int BUFFERS = 3;
#endif
__device__ void run(const double* in, double* out, int*, int64 n) {
  double* shared = reinterpret_cast<double*>(emulator_dynamic_shared());
  int t = threadIdx.x, threads = blockDim.x;
  double sum = 0;
  for (int pass = 0; pass < 8; ++pass) {
    double* now = shared + pass % BUFFERS * threads;
    double* before = shared + (pass + BUFFERS - 1) % BUFFERS * threads;
    now[t] = in[t] * (pass + 1);
    // Two passes back are still read while this pass is written.
    int beside = (t + 1) % threads;
    if (pass > 0) sum += before[beside];
    if (pass > 1) sum += shared[(pass + 2 * BUFFERS - 2) % BUFFERS * threads + beside];
    __syncthreads();
  }
  out[t] = sum;
}

#elif KERNEL == 3  // block 1 uses what block 0 wrote
__device__ void run(const double* in, double* out, int* flag, int64 n) {
  int t = threadIdx.x;
  if (blockIdx.x == 0) {
    out[t] = in[t] * 2;
    __syncthreads();
#if BUG == 1  // published before the other threads have written: only this thread's barrier would order them
    if (t == 0) *reinterpret_cast<volatile int*>(flag) = 1;
#elif BUG == 3  // never
#elif BUG == 4  // for threads of its own block only
    if (t == 0) emulator_store_as(flag, 1, EMULATE_ORDERED, EMULATE_BLOCK);
#else
    if (t == 0) emulator_store_as(flag, 1, EMULATE_ORDERED, EMULATE_DEVICE);
#endif
  } else {
#if BUG == 2  // not awaited
#elif BUG == 1
    while (*reinterpret_cast<volatile int*>(flag) == 0) emulator_yield();
#else
    while (emulator_load_as(flag, EMULATE_ORDERED, EMULATE_DEVICE) == 0) emulator_yield();
#endif
    out[blockDim.x + t] = out[blockDim.x - 1 - t] + 1;
  }
}

#elif KERNEL == 5  // warp 1 uses what warp 0 wrote to shared memory, awaiting a flag that lies there too
__device__ void run(const double* in, double* out, int*, int64 n) {
  double* shared = reinterpret_cast<double*>(emulator_dynamic_shared());
  int* flag = reinterpret_cast<int*>(shared + 32);
  int t = threadIdx.x, lane = t % 32;
  if (t == 0) *flag = 0;
#if BUG != 5  // nothing between the flag's first value and its first use
  __syncthreads();
#endif
  if (t < 32) {
    shared[lane] = in[lane] * 2;
#if BUG != 4  // published by a lane that does not know whether the others have written
    __syncwarp();
#endif
#if BUG == 1  // neither released
    if (lane == 31) *reinterpret_cast<volatile int*>(flag) = 1;
#elif BUG == 3  // never
#else
    if (lane == 31) emulator_store_as(flag, 1, EMULATE_ORDERED, EMULATE_DEVICE);
#endif
    out[t] = in[t];
  } else {
#if BUG == 1  // nor acquired
    while (*reinterpret_cast<volatile int*>(flag) == 0) emulator_yield();
#elif BUG == 2  // not awaited
#else
    while (emulator_load_as(flag, EMULATE_ORDERED, EMULATE_DEVICE) == 0) emulator_yield();
#endif
    out[t] = shared[31 - lane] + 1;
  }
}

#elif KERNEL == 6  // as 3, by relaxed accesses to the flag, between fences
__device__ void run(const double* in, double* out, int* flag, int64 n) {
  int t = threadIdx.x;
  constexpr EmulatorScope scope = BUG == 3 ? EMULATE_BLOCK : EMULATE_DEVICE;
  if (blockIdx.x == 0) {
#if BUG == 4  // a fence before what it is for
    if (t == 0) emulator_fence(scope);
#endif
    out[t] = in[t] * 2;
    __syncthreads();
    if (t == 0) {
#if BUG != 1 && BUG != 4  // no fence
      emulator_fence(scope);
#endif
      emulator_store_as(flag, 1, EMULATE_RELAXED, EMULATE_DEVICE);
    }
  } else {
    while (emulator_load_as(flag, EMULATE_RELAXED, EMULATE_DEVICE) == 0) emulator_yield();
#if BUG != 2  // a poll that acquires nothing
    emulator_fence(scope);
#endif
    out[blockDim.x + t] = out[blockDim.x - 1 - t] + 1;
  }
}

#elif KERNEL == 7  // as 3, by data that says itself whether it is there: NaN stands for nothing
__device__ void run(const double* in, double* out, int* flag, int64 n) {
  int t = threadIdx.x;
  if (blockIdx.x == 0) {
#if BUG == 2  // by a store that may be seen in parts
    out[t] = in[t] * 2;
#else
    emulator_store_as(out + t, in[t] * 2, EMULATE_RELAXED, EMULATE_DEVICE);
#endif
    __syncthreads();
#if BUG == 1  // relaxed accesses to other places order nothing
    if (t == 0) emulator_store_as(flag, 1, EMULATE_RELAXED, EMULATE_DEVICE);
#endif
  } else {
    const double* data = out + blockDim.x - 1 - t;
#if BUG == 1
    while (emulator_load_as(flag, EMULATE_RELAXED, EMULATE_DEVICE) == 0) emulator_yield();
    double got = emulator_load_as(data, EMULATE_RELAXED, EMULATE_DEVICE);
#elif BUG == 3  // or by a load that may
    double got = *data;
    while (got != got) emulator_yield(), got = *reinterpret_cast<const volatile double*>(data);
#else
    double got = emulator_load_as(data, EMULATE_RELAXED, EMULATE_DEVICE);
    while (got != got) emulator_yield(), got = emulator_load_as(data, EMULATE_RELAXED, EMULATE_DEVICE);
#endif
    out[blockDim.x + t] = got + 1;
  }
}

#else  // barriers that not every thread reaches
__device__ void run(const double* in, double* out, int*, int64 n) {
  int t = threadIdx.x;
#if BUG == 1
  if (t % 2) return;
  __syncthreads();
#elif BUG == 2
  if (t < 32) __syncthreads();
  else __syncwarp(0x3u << (t % 32 / 2 * 2));
  if (t >= 32) while (in[0] >= 0) emulator_yield();
#else
  __syncthreads();
#endif
  out[t] = in[t];
}
#endif

struct Planted {
  const double* in;
  double* out;
  int* flag;
  int64 n;
};

extern "C" __global__ void planted(const Planted given) { run(given.in, given.out, given.flag, given.n); }
