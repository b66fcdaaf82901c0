// The emulator's scheduler: one fiber for each CUDA thread, run in turns on one host thread. See README.md.
#pragma once
#include <cstddef>

namespace emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// The built-in variables of the thread that runs now.
extern Index thread_index, block_index, block_dim, grid_dim, cluster_dim;

constexpr unsigned kMaximumLanes = 128;  // a warp has 32, a warpgroup 128

// Stops the launch with a message. Callable from a kernel and from an asynchronous operation.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets other threads run; the calling thread is resumed in a later round.
void yield();

// Suspends the calling thread while (*word & mask) == value. `what` and `id` name the place in a deadlock report.
void wait_while(const unsigned* word, unsigned mask, unsigned value, const char* what, long id);

// bar.sync and bar.arrive on barrier 0 to 15; count = 0 stands for all threads of the block that have not exited.
void barrier(unsigned id, unsigned count, bool blocking);
// barrier.cluster.arrive and .wait
void cluster_arrive();
void cluster_wait();

// Threads of a warp (or warpgroup) meet: each brings pointers to its input and output; the last one to arrive runs `operation`
// once for all. `name` must be the same for all of them. `mask` has a bit for every lane that takes part (warp only).
using Operation = void (*)(void* context, void* const* inputs, void* const* outputs, unsigned mask);
void meet_warp(const char* name, unsigned mask, const void* input, void* output, Operation operation, void* context);
void meet_warpgroup(const char* name, const void* input, void* output, Operation operation, void* context);

template <class Input, class Output, class Function>
Output warp_collective(const char* name, unsigned mask, const Input& input, Function function) {
  Output output{};
  auto run = [](void* context, void* const* inputs, void* const* outputs, unsigned members) {
    (*static_cast<Function*>(context))(reinterpret_cast<const Input* const*>(inputs), reinterpret_cast<Output* const*>(outputs),
                                       members);
  };
  meet_warp(name, mask, &input, &output, run, &function);
  return output;
}

unsigned thread_number();  // within the block
inline unsigned lane() { return thread_number() % 32; }

// Shared memory. An address as PTX sees it: the block's rank in its cluster in the high byte, an offset below.
char* dynamic_shared();
unsigned shared_address(const void* pointer);
char* shared_pointer(unsigned address, size_t bytes);  // fails where [address, address + bytes) is not shared memory
unsigned cluster_rank();
unsigned cluster_size();

unsigned random_number(unsigned bound);  // 0 <= number < bound, from the launch's seed

// Runs `operation(context)` in a later round, in no particular order; the scheduler frees `context` afterwards.
void later(void (*operation)(void*), void* context);
// True as often as not; used where the hardware may be early or late.
inline bool coin() { return random_number(2) != 0; }

// A slot for what the PTX half keeps for a thread or a warpgroup; created at first use, destroyed with the block.
enum class Slot { thread_copies, thread_stores, warpgroup_products, count };
using Make = void* (*)();
using Destroy = void (*)(void*);
void* slot(Slot which, Make make, Destroy destroy);

using Body = void (*)(void* const* arguments);
}  // namespace emulator
