#include "runtime.h"

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers and the stack pointer in *from, and continues at `to`.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulator {
Index thread_index, block_index, block_dim, grid_dim, cluster_dim;

namespace {
constexpr size_t kPage = 4096, kStack = 64 * kPage;  // address space; pages that are never touched cost nothing
constexpr unsigned kSharedStart = 1024;              // as on sm_90, where the first KiB belongs to the system
constexpr unsigned kGuard = 1024;                    // bytes around shared memory that nobody may write
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xa5;
constexpr unsigned kRankShift = 24;
constexpr unsigned long kMaximumRounds = 4000000;

struct Kept {
  void* value = nullptr;
  Destroy destroy = nullptr;
  ~Kept() {
    if (value) destroy(value);
  }
};

struct Block;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Block* block = nullptr;
  unsigned number = 0;
  Index index;
  bool done = false;
  const unsigned* word = nullptr;  // suspended while (*word & mask) == value
  unsigned mask = 0, value = 0;
  const char* what = nullptr;
  long id = 0;
  unsigned cluster_generation = 0;  // of the phase of the cluster barrier at which it arrived
  Kept kept[static_cast<int>(Slot::count)];
};

struct Meeting {
  const char* name = nullptr;
  unsigned mask = 0, arrived = 0, generation = 0;
  void* inputs[kMaximumLanes];
  void* outputs[kMaximumLanes];
};

struct Barrier {
  unsigned arrived = 0, expected = 0, generation = 0;
};

struct Block {
  Index index;
  unsigned rank = 0, live = 0;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warp_meetings;       // four for each warp: lanes may meet in disjoint groups
  std::vector<Meeting> warpgroup_meetings;  // one for each warpgroup
  std::vector<Kept> warpgroup_kept;
  Barrier barriers[16];
  char* shared_block = nullptr;  // guard, shared memory, guard
  char* shared = nullptr;
};

struct Pending {
  unsigned delay;
  void (*operation)(void*);
  void* context;
};

struct Launch {
  Body body = nullptr;
  void* const* arguments = nullptr;
  size_t shared_bytes = 0;
  unsigned threads = 0;
  std::vector<Block> cluster;
  Barrier cluster_barrier;
  std::vector<Pending> pending;
  std::mt19937 random;
  std::string error;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  std::vector<char*> stacks;
  sigjmp_buf escape;
};

Launch* launch = nullptr;
std::vector<char*> free_stacks;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
#endif

void resume(Fiber& fiber) {
  launch->current = &fiber;
  thread_index = fiber.index;
  block_index = fiber.block->index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
  emulator_switch(&launch->scheduler, fiber.stack_pointer);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  emulator_switch(&launch->scheduler, fiber.stack_pointer);
#endif
  launch->current = nullptr;
}

void suspend() {
  Fiber& fiber = *launch->current;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fake, scheduler_stack, scheduler_stack_size);
  emulator_switch(&fiber.stack_pointer, launch->scheduler);
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_size);
#else
  emulator_switch(&fiber.stack_pointer, launch->scheduler);
#endif
}

void release_if_complete(Barrier& barrier, unsigned expected) {
  if (barrier.arrived && barrier.arrived >= expected) {
    barrier.arrived = 0;
    barrier.generation++;
  }
}

unsigned cluster_threads() {
  unsigned live = 0;
  for (auto& block : launch->cluster) live += block.live;
  return live;
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  launch->body(launch->arguments);
  Fiber& fiber = *launch->current;
  fiber.done = true;
  fiber.block->live--;
  for (auto& barrier : fiber.block->barriers)
    if (barrier.expected == 0) release_if_complete(barrier, fiber.block->live);
  suspend();
  abort();
}

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no address space for fiber stacks");
  mprotect(memory, kPage, PROT_NONE);  // an overflowing stack faults
  return static_cast<char*>(memory) + kPage;
}

// Every kernel has a library of its own, and a process only so many mappings: launch.py has those give back their stacks that have
// not been used for a while.
void release_stacks() {
  for (char* stack : free_stacks) munmap(stack - kPage, kStack + kPage);
  free_stacks.clear();
}

void prepare_fiber(Fiber& fiber) {
  fiber.stack = take_stack();
  launch->stacks.push_back(fiber.stack);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
  void** top = reinterpret_cast<void**>(fiber.stack + kStack - 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}

void prepare_block(Block& block, Index index, unsigned rank) {
  block.index = index;
  block.rank = rank;
  block.live = launch->threads;
  block.fibers.resize(launch->threads);
  block.warp_meetings.resize((launch->threads + 31) / 32 * 4);
  block.warpgroup_meetings.resize((launch->threads + 127) / 128);
  block.warpgroup_kept.resize(block.warpgroup_meetings.size());
  size_t bytes = launch->shared_bytes;
  block.shared_block = static_cast<char*>(aligned_alloc(1024, (bytes + 3 * kGuard) / 1024 * 1024));
  block.shared = block.shared_block + kGuard;
  memset(block.shared_block, kGuardByte, (bytes + 3 * kGuard) / 1024 * 1024);
  memset(block.shared, kPoison, bytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block.shared_block, kGuard);
  __asan_poison_memory_region(block.shared + bytes, kGuard);
#endif
  for (unsigned i = 0; i < launch->threads; i++) {
    Fiber& fiber = block.fibers[i];
    fiber.block = &block;
    fiber.number = i;
    fiber.index = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    prepare_fiber(fiber);
  }
}

void finish_block(Block& block) {
  size_t bytes = launch->shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block.shared_block, kGuard);
  __asan_unpoison_memory_region(block.shared + bytes, kGuard);
#endif
  bool intact = true;
  for (unsigned i = 0; i < kGuard; i++)
    intact &= (unsigned char)block.shared_block[i] == kGuardByte && (unsigned char)block.shared[bytes + i] == kGuardByte;
  free(block.shared_block);
  if (!intact && launch->error.empty())
    launch->error = "out-of-bounds write beside the " + std::to_string(bytes) + " bytes of dynamic shared memory of block (" +
                    std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
                    std::to_string(block.index.z) + ")";
}

std::string ranges(const std::vector<unsigned>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) j++;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]) + (j > i ? "-" + std::to_string(numbers[j]) : "");
    i = j + 1;
  }
  return text;
}

std::string deadlock_report() {
  std::string text = "deadlock:";
  for (auto& block : launch->cluster) {
    std::map<std::pair<std::string, long>, std::vector<unsigned>> waiting;
    std::vector<unsigned> exited;
    for (auto& fiber : block.fibers) {
      if (fiber.done) exited.push_back(fiber.number);
      else waiting[{fiber.what ? fiber.what : "a spin loop", fiber.id}].push_back(fiber.number);
    }
    text += " block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
            std::to_string(block.index.z) + "):";
    for (auto& [place, threads] : waiting)
      text += " threads " + ranges(threads) + " wait at " + place.first + " " + std::to_string(place.second) + ";";
    if (!exited.empty()) text += " threads " + ranges(exited) + " have exited;";
  }
  return text;
}

bool run_pending() {
  auto& pending = launch->pending;
  bool ran = false;
  for (size_t i = 0; i < pending.size();) {
    if (pending[i].delay-- > 0) {
      i++;
      continue;
    }
    Pending operation = pending[i];
    pending.erase(pending.begin() + i);
    operation.operation(operation.context);
    ran = true;
  }
  return ran;
}

// Static __shared__ variables are the library's thread-local ones (see cuda_language.h), together with this one.
thread_local char thread_local_anchor;

int poison_thread_locals(dl_phdr_info* library, size_t, void* anchor) {
  for (int i = 0; i < library->dlpi_phnum; i++) {
    char* begin = static_cast<char*>(library->dlpi_tls_data);
    size_t bytes = library->dlpi_phdr[i].p_memsz;
    if (library->dlpi_phdr[i].p_type != PT_TLS || anchor < begin || anchor >= begin + bytes) continue;
    memset(begin, kPoison, bytes);
    return 1;
  }
  return 0;
}

void poison_static_shared() { dl_iterate_phdr(poison_thread_locals, &thread_local_anchor); }

bool ready(const Fiber& fiber) { return !fiber.done && (!fiber.word || (*fiber.word & fiber.mask) != fiber.value); }

void run_cluster(Index first) {
  launch->cluster_barrier = Barrier();
  std::vector<Block>& cluster = launch->cluster;
  cluster = std::vector<Block>(cluster_dim.x * cluster_dim.y * cluster_dim.z);
  unsigned rank = 0;
  for (unsigned z = 0; z < cluster_dim.z; z++)
    for (unsigned y = 0; y < cluster_dim.y; y++)
      for (unsigned x = 0; x < cluster_dim.x; x++, rank++)
        prepare_block(cluster[rank], {first.x + x, first.y + y, first.z + z}, rank);
  poison_static_shared();
  unsigned warps = (launch->threads + 31) / 32;
  std::vector<unsigned> order(warps * cluster.size());
  for (unsigned i = 0; i < order.size(); i++) order[i] = i;
  unsigned long rounds = 0;
  while (cluster_threads() && launch->error.empty()) {
    std::shuffle(order.begin(), order.end(), launch->random);
    bool progress = run_pending();
    for (unsigned item : order) {
      Block& block = cluster[item / warps];
      unsigned begin = item % warps * 32, end = std::min(begin + 32, launch->threads);
      for (unsigned i = begin; i < end && launch->error.empty(); i++) {
        if (!ready(block.fibers[i])) continue;
        resume(block.fibers[i]);
        progress = true;
      }
    }
    if (!launch->error.empty()) break;
    if (!progress && launch->pending.empty()) launch->error = deadlock_report();
    if (++rounds > kMaximumRounds) launch->error = "no end after many rounds; " + deadlock_report();
  }
  for (auto& item : launch->pending) item.operation(item.context);
  launch->pending.clear();
  for (auto& block : cluster) finish_block(block);
  cluster.clear();
  free_stacks.insert(free_stacks.end(), launch->stacks.begin(), launch->stacks.end());
  launch->stacks.clear();
}

void on_fault(int signal_number, siginfo_t* information, void*) {
  static char text[200];
  snprintf(text, sizeof text, "%s at address %p", signal_number == SIGSEGV ? "invalid memory access" : "arithmetic or bus fault",
           information->si_addr);
  launch->error = text;
  siglongjmp(launch->escape, 1);
}

// Turns a fault inside a kernel into an error message, unless AddressSanitizer is there to do better.
class FaultGuard {
 public:
  FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    static char stack[64 * 1024];
    stack_t alternate{};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, &old_stack_);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(kSignals[i], &action, &old_[i]);
#endif
  }
  ~FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < 3; i++) sigaction(kSignals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
#endif
  }

 private:
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction old_[3];
  stack_t old_stack_;
};

}  // namespace

void fail(const char* format, ...) {
  char text[1000];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  if (!launch->current) throw std::runtime_error(text);
  Fiber& fiber = *launch->current;
  char place[200];
  snprintf(place, sizeof place, " (block (%u, %u, %u), thread %u)", fiber.block->index.x, fiber.block->index.y,
           fiber.block->index.z, fiber.number);
  launch->error = std::string(text) + place;
  for (;;) suspend();
}

void yield() {
  launch->current->word = nullptr;
  launch->current->what = nullptr;
  suspend();
}

void wait_while(const unsigned* word, unsigned mask, unsigned value, const char* what, long id) {
  Fiber& fiber = *launch->current;
  while ((*word & mask) == value) {
    fiber.word = word;
    fiber.mask = mask;
    fiber.value = value;
    fiber.what = what;
    fiber.id = id;
    suspend();
  }
  fiber.word = nullptr;
  fiber.what = nullptr;
}

static void arrive_and_wait(Barrier& barrier, unsigned count, unsigned expected, bool blocking, const char* what, long id) {
  if (barrier.arrived && barrier.expected != count)
    fail("%s %ld is used with different thread counts: %u and %u", what, id, barrier.expected, count);
  barrier.expected = count;
  unsigned generation = barrier.generation;
  barrier.arrived++;
  release_if_complete(barrier, expected);
  if (blocking) wait_while(&barrier.generation, ~0u, generation, what, id);
}

void barrier(unsigned id, unsigned count, bool blocking) {
  Block& block = *launch->current->block;
  if (id > 15) fail("barrier %u does not exist: a block has 16", id);
  if (count % 32) fail("barrier %u with %u threads: the count must be a multiple of 32", id, count);
  arrive_and_wait(block.barriers[id], count, count ? count : block.live, blocking, id || count ? "barrier" : "__syncthreads", id);
}

void cluster_arrive() {
  launch->current->cluster_generation = launch->cluster_barrier.generation;
  arrive_and_wait(launch->cluster_barrier, 0, cluster_threads(), false, "cluster barrier", 0);
}

void cluster_wait() {
  wait_while(&launch->cluster_barrier.generation, ~0u, launch->current->cluster_generation, "cluster barrier", 0);
}

static void meet(Meeting& meeting, const char* name, unsigned lane, unsigned members, unsigned expected, const void* input,
                 void* output, Operation operation, void* context) {
  if (meeting.arrived && strcmp(meeting.name, name))
    fail("divergence: lane %u is at %s while others wait at %s", lane, name, meeting.name);
  meeting.name = name;
  meeting.mask = members;
  meeting.inputs[lane] = const_cast<void*>(input);
  meeting.outputs[lane] = output;
  unsigned generation = meeting.generation;
  if (++meeting.arrived < expected) {
    wait_while(&meeting.generation, ~0u, generation, name, launch->current->number / 32);
    return;
  }
  if (operation) operation(context, meeting.inputs, meeting.outputs, members);
  meeting.arrived = 0;
  meeting.generation++;
}

void meet_warp(const char* name, unsigned mask, const void* input, void* output, Operation operation, void* context) {
  Fiber& fiber = *launch->current;
  unsigned warp = fiber.number / 32, lane = fiber.number % 32, first = warp * 32;
  unsigned present = std::min(32u, launch->threads - first);
  unsigned members = present == 32 ? mask : mask & ((1u << present) - 1);
  if (!(members >> lane & 1)) fail("%s: lane %u is not in its own mask %#x", name, lane, mask);
  Meeting* slots = &fiber.block->warp_meetings[warp * 4];
  Meeting* free_slot = nullptr;
  for (int i = 0; i < 4; i++) {
    if (slots[i].arrived && slots[i].mask == members)
      return meet(slots[i], name, lane, members, __builtin_popcount(members), input, output, operation, context);
    if (!slots[i].arrived && !free_slot) free_slot = &slots[i];
    if (slots[i].arrived && slots[i].mask & members)
      fail("divergence: lanes meet at %s with mask %#x and at %s with mask %#x", slots[i].name, slots[i].mask, name, members);
  }
  if (!free_slot) fail("%s: more than four groups of one warp meet at once", name);
  meet(*free_slot, name, lane, members, __builtin_popcount(members), input, output, operation, context);
}

void meet_warpgroup(const char* name, const void* input, void* output, Operation operation, void* context) {
  Fiber& fiber = *launch->current;
  Meeting& meeting = fiber.block->warpgroup_meetings[fiber.number / 128];
  if (fiber.number / 128 * 128 + 128 > launch->threads) fail("%s: the last warpgroup of the block is incomplete", name);
  meet(meeting, name, fiber.number % 128, 0, 128, input, output, operation, context);
}

unsigned thread_number() { return launch->current->number; }
char* dynamic_shared() { return launch->current->block->shared; }
unsigned cluster_rank() { return launch->current->block->rank; }
unsigned cluster_size() { return launch->cluster.size(); }
unsigned random_number(unsigned bound) { return launch->random() % bound; }

unsigned shared_address(const void* pointer) {
  Block& block = *launch->current->block;
  size_t offset = static_cast<const char*>(pointer) - block.shared;
  if (offset > launch->shared_bytes)
    fail("pointer %p is not in dynamic shared memory (offset %ld of %zu bytes)", pointer, (long)offset, launch->shared_bytes);
  return block.rank << kRankShift | (kSharedStart + unsigned(offset));
}

char* shared_pointer(unsigned address, size_t bytes) {
  unsigned rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  if (rank >= launch->cluster.size() || offset < kSharedStart || offset - kSharedStart + bytes > launch->shared_bytes)
    fail("shared address %#x + %zu lies outside of the %zu bytes of dynamic shared memory", address, bytes, launch->shared_bytes);
  return launch->cluster[rank].shared + offset - kSharedStart;
}

void later(void (*operation)(void*), void* context) { launch->pending.push_back({random_number(4), operation, context}); }

void* slot(Slot which, Make make, Destroy destroy) {
  Fiber& fiber = *launch->current;
  Kept& kept = which == Slot::warpgroup_products ? fiber.block->warpgroup_kept[fiber.number / 128]
                                                 : fiber.kept[static_cast<int>(which)];
  if (!kept.value) {
    kept.value = make();
    kept.destroy = destroy;
  }
  return kept.value;
}

}  // namespace emulator

// The C interface that Python calls. Returns 0, or 1 with a message in `error`.
extern "C" int emulator_launch(emulator::Body body, void* const* arguments, const unsigned grid[3], const unsigned block[3],
                               const unsigned cluster[3], size_t shared_bytes, unsigned seed, char* error, size_t error_bytes) {
  using namespace emulator;
  Launch state;
  launch = &state;
  state.body = body;
  state.arguments = arguments;
  state.shared_bytes = shared_bytes;
  state.random.seed(seed);
  grid_dim = {grid[0], grid[1], grid[2]};
  block_dim = {block[0], block[1], block[2]};
  cluster_dim = {cluster[0], cluster[1], cluster[2]};
  state.threads = block[0] * block[1] * block[2];
  try {
    if (state.threads == 0 || state.threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
    for (int i = 0; i < 3; i++)
      if (grid[i] == 0 || grid[i] % cluster[i]) throw std::runtime_error("the grid is empty or no multiple of the cluster");
    std::vector<Index> clusters;
    for (unsigned z = 0; z < grid[2]; z += cluster[2])
      for (unsigned y = 0; y < grid[1]; y += cluster[1])
        for (unsigned x = 0; x < grid[0]; x += cluster[0]) clusters.push_back({x, y, z});
    std::shuffle(clusters.begin(), clusters.end(), state.random);  // blocks run in no particular order
    FaultGuard guard;
    if (sigsetjmp(state.escape, 1) == 0)
      for (size_t i = 0; i < clusters.size() && state.error.empty(); i++) run_cluster(clusters[i]);
  } catch (const std::exception& exception) {
    state.error = exception.what();
  }
  launch = nullptr;
  snprintf(error, error_bytes, "%s", state.error.c_str());
  return !state.error.empty();
}

extern "C" void emulator_release() { emulator::release_stacks(); }
