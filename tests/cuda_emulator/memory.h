// What the emulator knows of memory, in launches that are checked: a part of emulator.cpp.
//
// Plain accesses. A kernel that is right orders any two accesses of different threads to one word, one of them a write:
// by a barrier, __syncwarp, or a release that an acquire has seen. What is not ordered is a race, and ends the launch. So
// it does not matter when a plain store becomes visible, or how long a plain load is stale: nobody looks meanwhile.
//
// Atomic accesses, of which flags and data that carry their own flag are made, may race, and are seen late. Each place
// keeps its last stores. A load takes any of them that is not older than what its thread has seen of this place, or than
// the last store that happens before it: stores are delayed, each on its own, until something orders them. A release
// gives all that its thread knows to whoever acquires what it stored; a fence makes later relaxed stores releases, and
// earlier relaxed loads acquires. Of the scope of a block, all of this orders threads of one block only.
//
// Not seen: what a new block does in the place of one that has ended, as both have one entry in the clocks.

static Buffer* find(uintptr_t address, size_t size) {
  Buffer& shared = shared_shadow[running->slot];
  if (address >= shared.begin && address + size <= shared.end) return &shared;
  for (Buffer& b : buffers)
    if (address >= b.begin && address + size <= b.end) return &b;
  return nullptr;
}

static bool is_own(uintptr_t address, size_t size) {
  uintptr_t stack = uintptr_t(stacks) + running->id * STACK;
  if (address >= stack && address + size <= stack + STACK) return true;
  if (address == uintptr_t(&emulator_current)) return true;
  return address >= uintptr_t(fibers.data()) && address < uintptr_t(fibers.data() + fibers.size());
}

static bool is_constant(uintptr_t address, size_t size) {
  for (const Range& r : data_ranges)  // the argument among them, which is read on entry
    if (address >= r.begin && address + size <= r.end) return true;
  return false;
}

// An access by another thread that nothing orders before this one, by the last of its kind.
static bool is_unordered(int thread, uint32_t clock) {
  return thread >= 0 && thread != running->id && seen_by(*running, thread) < clock;
}

static void access(const volatile void* pointer, size_t size, bool write, bool atomic) {
  if (!launch || !launch->checked || !running || failed) return;
  uintptr_t address = uintptr_t(pointer);
  if (!atomic && is_own(address, size)) return;
  Buffer* buffer = find(address, size);
  if (!buffer) {
    bool is_private = is_own(address, size) || is_constant(address, size);
    if (is_private && !atomic) return;
    fail("%s %s %zu bytes outside every buffer%s", name(*running).c_str(), write ? "writes" : "reads", size,
         is_private ? " (an atomic access to private memory)" : "");
    return;
  }
  Fiber& me = *running;
  for (uintptr_t at = (address - buffer->begin) / 4; at <= (address + size - 1 - buffer->begin) / 4; ++at) {
    Word& word = buffer->shadow[at];
    int writer = is_unordered(word.writer, word.write_clock) ? word.writer : -1;
    int reader = write && is_unordered(word.reader, word.read_clock) ? word.reader : -1;
    if (!atomic && word.atomic) {
      if (is_unordered(word.atomic_writer, word.atomic_write_clock)) writer = word.atomic_writer;
      if (write && is_unordered(word.atomic_reader, word.atomic_read_clock)) reader = word.atomic_reader;
    }
    if (writer >= 0) {
      fail("race: %s %s word %zu of a buffer that %s wrote, with nothing in between", name(me).c_str(),
           write ? "writes" : "reads", size_t(at), name(fibers[writer]).c_str());
      return;
    }
    if (reader >= 0) {
      fail("race: %s writes word %zu of a buffer that %s read, with nothing in between", name(me).c_str(), size_t(at),
           name(fibers[reader]).c_str());
      return;
    }
    if (atomic) {
      word.atomic = true;
      (write ? word.atomic_writer : word.atomic_reader) = int16_t(me.id);
      (write ? word.atomic_write_clock : word.atomic_read_clock) = me.clock.own;
    } else if (write) {
      word.writer = int16_t(me.id);
      word.write_clock = me.clock.own;
      if (word.atomic) {  // what atomic stores have left is gone
        word.atomic = false;
        word.atomic_writer = word.atomic_reader = -1;
        forget(buffer->begin + 4 * at, buffer->begin + 4 * at + 4);
      }
    } else {
      word.reader = int16_t(me.id);
      word.read_clock = me.clock.own;
    }
  }
}

static uint64_t read_bytes(const void* address, size_t size) {
  uint64_t value = 0;
  memcpy(&value, address, size);
  return value;
}

static Place& place_at(const void* address, size_t size) {
  Place& place = places[uintptr_t(address)];
  if (place.stores.empty()) {
    place.size = size;
    place.stores.push_back({read_bytes(address, size), -1, 0, 0, nullptr, false});
  }
  if (place.size != size) fail("%s: an atomic access of %zu bytes where others have %zu", name(*running).c_str(), size, place.size);
  return place;
}

static void join_clock(const std::vector<uint32_t>& from) {
  auto clock = std::make_shared<std::vector<uint32_t>>(*running->clock.others);
  join(*clock, from);
  running->clock.others = clock;
}

static void push_store(Place& place, const void* address, Store store) {
  Fiber& me = *running;
  store.writer = me.id;
  store.clock = me.clock.own;
  store.block = me.where.block.x;
  place.stores.push_back(store);
  if (place.stores.size() > KEPT_STORES) {
    place.stores.erase(place.stores.begin());
    place.dropped++;
  }
  me.seen[uintptr_t(address)] = place.dropped + int64_t(place.stores.size()) - 1;
}

// What another thread's store gives to this one, if anything: at once, or at the next fence.
static void take_released(const Store& store, bool acquire, bool in_block) {
  if (!store.released) return;
  if ((store.in_block || in_block) && store.block != running->where.block.x) return;
  if (acquire) {
    join_clock(*store.released);
    return;
  }
  auto clock = std::make_shared<std::vector<uint32_t>>(*store.released);
  if (running->to_acquire) join(*clock, *running->to_acquire);
  running->to_acquire = clock;
}

extern "C" {

uint64_t emulator_load(const void* address, int size, int acquire, int in_block) {
  access(address, size, false, true);
  uint64_t value = read_bytes(address, size);
  if (launch->checked) {
    Fiber& me = *running;
    Place& place = place_at(address, size);
    int64_t last = int64_t(place.stores.size()) - 1, oldest = 0;
    for (int64_t k = last; k > 0 && !oldest; --k) {
      const Store& store = place.stores[k];
      if (store.writer == me.id || seen_by(me, store.writer) >= store.clock) oldest = k;
    }
    auto seen = me.seen.find(uintptr_t(address));
    if (seen != me.seen.end()) oldest = std::max(oldest, std::min(last, seen->second - place.dropped));
    int64_t chosen = last;
    if (oldest < last && draw() % 4 == 0) chosen = oldest + int64_t(draw() % uint64_t(last - oldest));
    me.seen[uintptr_t(address)] = place.dropped + chosen;
    value = place.stores[chosen].value;
    take_released(place.stores[chosen], acquire, in_block);
  }
  // Other threads may run between any two accesses to memory that they share.
  leave();
  return value;
}

void emulator_store(void* address, uint64_t value, int size, int release, int in_block) {
  access(address, size, true, true);
  if (launch->checked) {
    Place& place = place_at(address, size);
    Store store = {value, 0, 0, 0, running->fenced, running->fenced_in_block};
    if (release) {
      store.released = std::make_shared<std::vector<uint32_t>>(clock_of(*running));
      store.in_block = in_block;
    }
    push_store(place, address, store);
    running->clock.own++;
  }
  memcpy(address, &value, size);
  progressed = true;
  leave();
}

void emulator_fence(int in_block) {
  if (!launch->checked) return;
  Fiber& me = *running;
  if (me.to_acquire) join_clock(*me.to_acquire);
  me.to_acquire = nullptr;
  me.fenced = std::make_shared<std::vector<uint32_t>>(clock_of(me));
  me.fenced_in_block = in_block;
  me.clock.own++;
}

// Relaxed, of the last value; what a release before it has given goes on.
static int exchange(int* address, int value) {
  access(address, 4, true, true);
  if (launch->checked) {
    Place& place = place_at(address, 4);
    Store store = place.stores.back();
    store.value = uint32_t(value);
    push_store(place, address, store);
    running->clock.own++;
  }
  int old = *address;
  *address = value;
  progressed = true;
  return old;
}

int emulator_atomic_add(int* address, int value) { return exchange(address, *address + value); }

int emulator_atomic_or(int* address, int value) { return exchange(address, *address | value); }

// The callbacks of -fsanitize=thread.
#define CALLBACKS(size)                                                              \
  void __tsan_read##size(void* a) { access(a, size, false, false); }                 \
  void __tsan_write##size(void* a) { access(a, size, true, false); }                 \
  void __tsan_unaligned_read##size(void* a) { access(a, size, false, false); }       \
  void __tsan_unaligned_write##size(void* a) { access(a, size, true, false); }       \
  void __tsan_volatile_read##size(void* a) { access(a, size, false, false); }        \
  void __tsan_volatile_write##size(void* a) { access(a, size, true, false); }
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
void __tsan_read_range(void* a, size_t size) { access(a, size, false, false); }
void __tsan_write_range(void* a, size_t size) { access(a, size, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}
