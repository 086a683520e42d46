// The runtime of the emulator: fibers, schedulers, warp intrinsics, shared memory, and what is checked meanwhile.
//
// Always checked: barriers and warp intrinsics that not all of their threads reach, lanes outside their own mask,
// reads from lanes outside the mask, deadlocks, guard zones around shared memory, which starts as NaN.
// In launches that are checked, by the callbacks of -fsanitize=thread, which this file provides in place of the
// sanitizer's library: every access to memory lies in a buffer of the launch, in the block's shared memory or in the
// thread's own stack; and no two threads touch the same word, one of them writing, unless a barrier, __syncwarp or a
// release-acquire pair orders them (vector clocks: one last writer and one last reader are kept for each word).
// Shuffles order nothing, as in CUDA. Atomic accesses are seen as late as their order allows: memory.h.
#include <link.h>
#include <sys/mman.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

struct EmulatorIndex {
  unsigned x, y, z;
};
struct EmulatorThread {
  EmulatorIndex thread, block, threads, blocks;
};
enum { SYNC, INDEX, UP, DOWN, XOR, BALLOT };
static const char* const operation_names[] = {"__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                              "__shfl_xor_sync", "a vote"};
enum Schedule { ASCENDING, DESCENDING, RANDOM, ONE_WARP_AHEAD };

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
struct Context {
  void* top = nullptr;
};
static void context_start(Context& context, char* stack, size_t size, void (*main)()) {
  void** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;                          // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(main);    // returned to by the first switch
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  context.top = top;
}
static void context_switch(Context& from, Context& to) { emulator_switch(&from.top, to.top); }
#else
#include <ucontext.h>
struct Context {
  ucontext_t state;
};
static void context_start(Context& context, char* stack, size_t size, void (*main)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, main, 0);
}
static void context_switch(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

static const size_t STACK = 256 << 10, GUARD = 4096;
static const unsigned char GUARD_BYTE = 0xA5;

struct PendingCopy {
  void* to;
  int size, group;
  unsigned char bytes[16];
};

// A vector clock. All that a barrier joins share one, of which only their own entries differ: those are kept apart.
struct Clock {
  std::shared_ptr<const std::vector<uint32_t>> others;
  uint32_t own = 0;
};

struct Fiber {
  EmulatorThread where;
  Context context;
  int id, slot, in_block, lane;  // `in_block`: linear thread index
  enum { READY, AT_BARRIER, AT_WARP, DONE } state;
  int operation, parameter, width;
  unsigned mask, value, result;
  Clock clock;
  std::vector<PendingCopy> copies;  // asynchronous ones, in order
  int group = 0;                    // the one that is open
  // For the order of atomic accesses, see memory.h: the last store seen of each place, what the next fence acquires, and
  // what the last one has released.
  std::unordered_map<uintptr_t, int64_t> seen;
  std::shared_ptr<const std::vector<uint32_t>> to_acquire, fenced;
  bool fenced_in_block = false;
};

struct Warp {
  unsigned waiting = 0, exited = 0;  // lanes
  int operation = 0;
  unsigned mask = 0;
  bool alike = true;  // all that wait gave this operation and mask
};

struct Block {
  bool active = false;
  int waiting = 0, done = 0;
  std::vector<unsigned char> shared;
};

struct Word {  // shadow of 4 bytes
  uint32_t write_clock = 0, read_clock = 0;
  int16_t writer = -1, reader = -1;
  int16_t atomic_writer = -1, atomic_reader = -1;  // of atomic accesses, which do not race with each other
  uint32_t atomic_write_clock = 0, atomic_read_clock = 0;
  bool atomic = false;  // there were some
};

struct Buffer {
  uintptr_t begin, end;
  std::vector<Word> shadow;
};

struct Range {
  uintptr_t begin, end;
};

extern "C" {
EmulatorThread* emulator_current;
struct EmulatorLaunch {
  int64_t grid[3], block[3];
  int64_t shared_bytes, schedule, seed, resident, buffers, checked, flushes;
  const uint64_t* begin;
  const uint64_t* size;
  char* message;
  int64_t message_size, switches, counts[4];  // of what kernels note, by warp
};
}

static EmulatorLaunch* launch;
static int64_t (*entry)(const void*);
static const void* argument;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;  // those of a block lie side by side
static std::vector<Block> blocks;
static std::vector<Buffer> buffers, shared_shadow;
static std::vector<Range> data_ranges;
static std::vector<uint64_t> ready, yielded;  // a bit for each fiber
static char* stacks;
static size_t stacks_mapped;
static Fiber* running;
static Context scheduler;
static bool failed;
static int last_picked;
static bool progressed;  // something happened that a polling thread may be waiting for
static int per_block, warps_in_block;
static int64_t next_block, all_blocks;
static uint64_t random_state;

// What is known of a place that atomic accesses go to; see memory.h.
struct Store {
  uint64_t value;
  int writer;  // -1: before the launch, or by plain stores
  uint32_t clock;
  unsigned block;
  std::shared_ptr<const std::vector<uint32_t>> released;  // null: nothing
  bool in_block;                                          // the scope of that
};

struct Place {
  size_t size;
  int64_t dropped = 0;  // stores, before the first that is kept
  std::vector<Store> stores;
};

static const size_t KEPT_STORES = 4;  // of a place
static std::map<uintptr_t, Place> places;

static void forget(uintptr_t begin, uintptr_t end) {
  auto place = places.lower_bound(begin - 4);  // one of 8 bytes may begin there
  while (place != places.end() && place->first < end) {
    if (place->first + place->second.size > begin) place = places.erase(place);
    else ++place;
  }
}

static uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static std::string name(const Fiber& f) {
  char text[96];
  snprintf(text, sizeof text, "block %u thread %d", f.where.block.x, f.in_block);
  return text;
}

// Ends the launch: the fibers are abandoned where they are.
static void fail(const char* format, ...) {
  if (!failed) {
    va_list list;
    va_start(list, format);
    vsnprintf(launch->message, launch->message_size, format, list);
    va_end(list);
  }
  failed = true;
  if (running) {
    Context dead;
    context_switch(dead, scheduler);
  }
}

static Warp& warp_of(const Fiber& f) { return warps[f.slot * warps_in_block + f.in_block / 32]; }

static void set_ready(int id, bool value) {
  uint64_t bit = uint64_t(1) << (id % 64);
  ready[id / 64] = value ? ready[id / 64] | bit : ready[id / 64] & ~bit;
}

static int pick(int last);

static void resume(int id) {
  last_picked = id;
  running = &fibers[id];
  emulator_current = &running->where;
}

// Until somebody makes this fiber ready again: to the next one, or to the scheduler where none can run.
static void leave() {
  Fiber* me = running;
  launch->switches++;
  int id = pick(me->id);
  if (id == me->id) return;
  if (id < 0 || me->state == Fiber::DONE) {
    context_switch(me->context, scheduler);
    return;
  }
  resume(id);
  context_switch(me->context, running->context);
}

static void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  for (size_t k = 0; k < into.size(); ++k) into[k] = std::max(into[k], from[k]);
}

static uint32_t seen_by(const Fiber& f, int id) { return id == f.id ? f.clock.own : (*f.clock.others)[id]; }

static std::vector<uint32_t> clock_of(const Fiber& f) {
  std::vector<uint32_t> clock = *f.clock.others;
  clock[f.id] = f.clock.own;
  return clock;
}

// What all of `group` did before happens before whatever any of them does next.
static void join_all(const std::vector<Fiber*>& group) {
  if (!launch->checked) return;
  auto clock = std::make_shared<std::vector<uint32_t>>(*group[0]->clock.others);
  const void* joined = group[0]->clock.others.get();
  for (Fiber* f : group) {
    if (f->clock.others.get() != joined) join(*clock, *f->clock.others);
    joined = f->clock.others.get();
  }
  for (Fiber* f : group) (*clock)[f->id] = f->clock.own;
  for (Fiber* f : group) {
    f->clock.others = clock;
    f->clock.own++;
  }
}

static void fiber_main() {
  entry(argument);
  Fiber* me = running;
  me->state = Fiber::DONE;
  progressed = true;
  set_ready(me->id, false);
  warp_of(*me).exited |= 1u << me->lane;
  Block& block = blocks[me->slot];
  if (block.waiting) fail("%s exited while others of its block wait at __syncthreads", name(*me).c_str());
  for (int k = 0; k < 32 && me->in_block / 32 * 32 + k < per_block; ++k) {
    Fiber& other = fibers[me->slot * per_block + me->in_block / 32 * 32 + k];
    if (other.state == Fiber::AT_WARP && other.mask >> me->lane & 1)
      fail("%s exited while %s waits for it in %s", name(*me).c_str(), name(other).c_str(),
           operation_names[other.operation]);
  }
  block.done++;
  leave();
}

static void start_block(int slot) {
  Block& block = blocks[slot];
  block.active = next_block < all_blocks;
  if (!block.active) return;
  int64_t b = next_block++;
  block.waiting = block.done = 0;
  block.shared.assign(GUARD * 2 + launch->shared_bytes, GUARD_BYTE);
  memset(block.shared.data() + GUARD, 0xFF, launch->shared_bytes);  // NaN as float and as double
  Buffer& shadow = shared_shadow[slot];
  shadow.begin = uintptr_t(block.shared.data() + GUARD);
  shadow.end = shadow.begin + launch->shared_bytes;
  forget(shadow.begin, shadow.end);
  if (launch->checked) shadow.shadow.assign(launch->shared_bytes / 4 + 1, Word());
  std::fill_n(warps.begin() + slot * warps_in_block, warps_in_block, Warp());
  for (int t = 0; t < per_block; ++t) {
    Fiber& f = fibers[slot * per_block + t];
    const int64_t* g = launch->grid;
    const int64_t* d = launch->block;
    f.where.block = {unsigned(b % g[0]), unsigned(b / g[0] % g[1]), unsigned(b / g[0] / g[1])};
    f.where.thread = {unsigned(t % d[0]), unsigned(t / d[0] % d[1]), unsigned(t / d[0] / d[1])};
    f.where.blocks = {unsigned(g[0]), unsigned(g[1]), unsigned(g[2])};
    f.where.threads = {unsigned(d[0]), unsigned(d[1]), unsigned(d[2])};
    f.state = Fiber::READY;
    f.in_block = t;
    f.lane = t % 32;
    f.slot = slot;
    f.id = slot * per_block + t;
    f.copies.clear();
    f.seen.clear();
    f.to_acquire = f.fenced = nullptr;
    f.clock.own++;
    context_start(f.context, stacks + f.id * STACK, STACK, fiber_main);
    set_ready(f.id, true);
  }
}

static void end_block(int slot) {
  Block& block = blocks[slot];
  for (size_t k = 0; k < GUARD; ++k)
    if (block.shared[k] != GUARD_BYTE || block.shared[GUARD + launch->shared_bytes + k] != GUARD_BYTE) {
      running = nullptr;
      fail("shared memory was written outside its %lld bytes", (long long)launch->shared_bytes);
      return;
    }
  start_block(slot);
}

// The first fiber that can run at or after `from`, in the direction of step and around the end; -1: none can.
static int next_ready(int from, int step) {
  int count = int(fibers.size()), words = int(ready.size());
  if (from == count) from = 0;
  if (from < 0) from = count - 1;
  uint64_t upward = ~uint64_t(0) << (from % 64), downward = ~uint64_t(0) >> (63 - from % 64);
  int w = from / 64;
  for (int k = 0; k <= words; ++k) {
    uint64_t word = ready[w] & ~yielded[w];
    uint64_t ahead = step > 0 ? upward : downward;
    if (k == 0) word &= ahead;
    if (k == words) word &= ~ahead;  // what was left of the first word
    if (word) return 64 * w + (step > 0 ? __builtin_ctzll(word) : 63 - __builtin_clzll(word));
    w += step;
    if (w == words) w = 0;
    if (w < 0) w = words - 1;
  }
  return -1;
}

static int pick(int last) {
  int count = int(fibers.size());
  switch (launch->schedule) {
    case ASCENDING: return next_ready(last + 1, 1);
    case DESCENDING: return next_ready(last - 1, -1);
    case RANDOM: return next_ready(int(draw() % count), draw() & 1 ? 1 : -1);
    default: {  // stay in one warp as long as it can go on, then to another
      int warp = last / 32 * 32;
      uint32_t able = uint32_t((ready[warp / 64] & ~yielded[warp / 64]) >> (warp % 64));
      if (able) return warp + __builtin_ctz(able);
      return next_ready(int(draw() % count), 1);
    }
  }
}

static const char* state_name(const Fiber& f) {
  return f.state == Fiber::AT_BARRIER ? "__syncthreads" : f.state == Fiber::AT_WARP ? operation_names[f.operation] : "?";
}

static void run() {
  last_picked = launch->schedule == DESCENDING ? 0 : int(fibers.size()) - 1;
  int64_t idle_rounds = 0;
  for (;;) {
    int id = pick(last_picked);
    if (id < 0) {
      bool any = false;
      for (uint64_t& word : yielded) any |= word != 0, word = 0;
      if (any) {
        if (++idle_rounds > 2000) {
          running = nullptr;
          fail("deadlock: threads poll for what never comes");
          return;
        }
        continue;
      }
      for (Fiber& f : fibers)
        if (blocks[f.slot].active && f.state != Fiber::DONE) {
          running = nullptr;
          fail("deadlock: %s waits in %s", name(f).c_str(), state_name(f));
          return;
        }
      return;
    }
    resume(id);
    context_switch(scheduler, running->context);
    if (failed) return;
    Fiber& f = *running;  // the last one that ran, many may have since
    if (progressed) idle_rounds = 0;
    progressed = false;
    if (f.state == Fiber::DONE && blocks[f.slot].done == per_block) end_block(f.slot);
    if (failed) return;
  }
}

extern "C" {

void emulator_yield() {
  yielded[running->id / 64] |= uint64_t(1) << (running->id % 64);
  leave();
}

void emulator_syncthreads() {
  Fiber* me = running;
  Block& block = blocks[me->slot];
  if (block.done) fail("%s is at __syncthreads, but a thread of its block has exited", name(*me).c_str());
  me->state = Fiber::AT_BARRIER;
  progressed = true;
  set_ready(me->id, false);
  if (++block.waiting == per_block) {
    block.waiting = 0;
    std::vector<Fiber*> group;
    for (int t = 0; t < per_block; ++t) {
      Fiber& f = fibers[me->slot * per_block + t];
      f.state = Fiber::READY;
      set_ready(f.id, true);
      group.push_back(&f);
    }
    join_all(group);
  }
  leave();
}

unsigned emulator_warp(int operation, unsigned mask, unsigned value, int parameter, int width) {
  Fiber* me = running;
  if (!(mask >> me->lane & 1))
    fail("%s calls %s with a mask 0x%08x without itself", name(*me).c_str(), operation_names[operation], mask);
  if (width & (width - 1)) fail("%s: a width of %d is no power of 2", name(*me).c_str(), width);
  me->operation = operation;
  me->mask = mask;
  me->value = value;
  me->parameter = parameter;
  me->width = width;
  me->state = Fiber::AT_WARP;
  progressed = true;
  set_ready(me->id, false);
  Fiber* lanes = me - me->lane;
  Warp& warp = warp_of(*me);
  if (!warp.waiting) warp.alike = false;
  // Each lane of the mask is looked at by the first to come, and whenever somebody differs.
  if (!warp.alike || warp.operation != operation || warp.mask != mask || (warp.exited & mask)) {
    for (int k = 0; k < 32; ++k) {
      if (!(mask >> k & 1)) continue;
      if (me->in_block - me->lane + k >= per_block) fail("%s names lanes that do not exist", name(*me).c_str());
      Fiber& other = lanes[k];
      if (other.state == Fiber::DONE)
        fail("%s waits in %s for %s, which has exited", name(*me).c_str(), operation_names[operation],
             name(other).c_str());
      if (other.state != Fiber::AT_WARP) continue;
      if (other.mask != mask || other.operation != operation)
        fail("divergent warp: %s is in %s with mask 0x%08x, %s in %s with mask 0x%08x", name(*me).c_str(),
             operation_names[operation], mask, name(other).c_str(), operation_names[other.operation], other.mask);
    }
    warp.alike = !warp.waiting;
    warp.operation = operation;
    warp.mask = mask;
  }
  warp.waiting |= 1u << me->lane;
  unsigned arrived = warp.waiting & mask;
  if (arrived == mask) {
    unsigned ballot = 0;
    warp.waiting &= ~mask;
    for (int k = 0; k < 32; ++k)
      if (mask >> k & 1) ballot |= (lanes[k].value != 0) << k;
    for (int k = 0; k < 32; ++k) {
      if (!(mask >> k & 1)) continue;
      Fiber& f = lanes[k];
      int first = k & -f.width, source = k;
      if (operation == INDEX) source = first + (f.parameter & (f.width - 1));
      if (operation == UP && k - f.parameter >= first) source = k - f.parameter;
      if (operation == DOWN && k + f.parameter < first + f.width) source = k + f.parameter;
      if (operation == XOR && (k ^ f.parameter) < first + f.width) source = k ^ f.parameter;
      if (!(mask >> source & 1))
        fail("%s reads lane %d in %s, which is outside the mask 0x%08x", name(f).c_str(), source,
             operation_names[operation], mask);
      f.result = operation == BALLOT ? ballot : lanes[source].value;
    }
    static std::vector<Fiber*> group;
    group.clear();
    for (int k = 0; k < 32; ++k) {
      if (!(mask >> k & 1)) continue;
      lanes[k].state = Fiber::READY;
      set_ready(lanes[k].id, true);
      if (operation == SYNC) group.push_back(&lanes[k]);
    }
    if (operation == SYNC) join_all(group);
  }
  leave();
  return me->result;
}

void emulator_count(int what) {
  if (running->lane == 0) launch->counts[what]++;
}

// Asynchronous copies arrive as late as they may: when they are awaited.
void emulator_push_copy(void* to, const void* bytes, int size) {
  PendingCopy copy = {to, size, running->group, {}};
  memcpy(copy.bytes, bytes, size);
  running->copies.push_back(copy);
}

void emulator_commit_copies() { running->group++; }

int emulator_pop_copy(int groups, void** to, void* bytes) {
  std::vector<PendingCopy>& copies = running->copies;
  if (copies.empty() || copies.front().group >= running->group - groups) return 0;
  *to = copies.front().to;
  int size = copies.front().size;
  memcpy(bytes, copies.front().bytes, size);
  copies.erase(copies.begin());
  return size;
}

unsigned char* emulator_dynamic_shared() { return blocks[running->slot].shared.data() + GUARD; }

}

#include "memory.h"

static int collect(struct dl_phdr_info* info, size_t, void* wanted) {
  bool here = false;
  for (int k = 0; k < info->dlpi_phnum; ++k) {
    uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
    here |= uintptr_t(wanted) >= begin && uintptr_t(wanted) < begin + info->dlpi_phdr[k].p_memsz;
  }
  for (int k = 0; here && k < info->dlpi_phnum; ++k)
    if (info->dlpi_phdr[k].p_type == PT_LOAD) {
      uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
      data_ranges.push_back({begin, begin + info->dlpi_phdr[k].p_memsz});
    }
  return 0;
}

// Returns 0, or 1 with a message. `kernel` is an EMULATOR_ENTRY.
// Subnormal numbers are 0 meanwhile, given or found: as with -ftz=true, but in float64 too.
struct Flushing {
#if defined(__SSE__)
  unsigned before = _mm_getcsr();
  explicit Flushing(bool on) {
    if (on) _mm_setcsr(before | 0x8040);
  }
  ~Flushing() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  explicit Flushing(bool on) {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    if (on) asm volatile("msr fpcr, %0" ::"r"(before | uint64_t(1) << 24));
  }
  ~Flushing() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#else
  explicit Flushing(bool) {}
#endif
};

extern "C" int emulator_launch(int64_t (*kernel)(const void*), const void* kernel_argument, int64_t bytes, EmulatorLaunch* how) {
  launch = how;
  entry = kernel;
  argument = kernel_argument;
  failed = false;
  running = nullptr;
  places.clear();
  how->switches = 0;
  for (int64_t& count : how->counts) count = 0;
  random_state = uint64_t(how->seed) * 2654435761u + 88172645463325252u;
  per_block = int(how->block[0] * how->block[1] * how->block[2]);
  all_blocks = how->grid[0] * how->grid[1] * how->grid[2];
  next_block = 0;
  int slots = int(how->resident < all_blocks ? how->resident : all_blocks);
  fibers.assign(size_t(slots) * per_block, Fiber());
  auto start = std::make_shared<std::vector<uint32_t>>(how->checked ? fibers.size() : 0);
  for (Fiber& f : fibers) f.clock.others = start;
  blocks.assign(slots, Block());
  warps_in_block = (per_block + 31) / 32;
  warps.assign(size_t(slots) * warps_in_block, Warp());
  shared_shadow.assign(slots, Buffer());
  ready.assign((fibers.size() + 63) / 64, 0);
  yielded.assign(ready.size(), 0);
  if (fibers.size() * STACK > stacks_mapped) {
    if (stacks) munmap(stacks, stacks_mapped);
    stacks_mapped = fibers.size() * STACK;
    stacks = static_cast<char*>(
        mmap(nullptr, stacks_mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  buffers.clear();
  for (int64_t k = 0; k < how->buffers; ++k) {
    Buffer b;
    b.begin = how->begin[k];
    b.end = b.begin + how->size[k];
    if (how->checked) b.shadow.resize(how->size[k] / 4 + 1);
    buffers.push_back(std::move(b));
  }
  data_ranges.clear();
  dl_iterate_phdr(collect, reinterpret_cast<void*>(kernel));
  dl_iterate_phdr(collect, reinterpret_cast<void*>(&emulator_current));
  data_ranges.push_back({uintptr_t(argument), uintptr_t(argument) + bytes});
  for (int slot = 0; slot < slots; ++slot) start_block(slot);
  {
    Flushing flushing(how->flushes);
    run();
  }
  running = nullptr;
  launch = nullptr;
  return failed;
}
