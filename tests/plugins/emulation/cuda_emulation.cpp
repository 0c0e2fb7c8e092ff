#include "cuda_emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace vtx::emulation {

Index thread_index, block_index, block_size, grid_size;

// How many kernels have been launched.
extern "C" {
unsigned vtx_emulation_launches = 0;
}

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kLanes = 32;

struct Warp {
  unsigned arrived = 0, generation = 0, size = 0;
  uint64_t values[kLanes] = {};
};

struct Block {
  Index index;
  unsigned arrived = 0, generation = 0, left = 0;
  std::unique_ptr<unsigned char[]> shared;
  std::vector<Warp> warps;
};

// A fiber's stack pointer is all that is kept of it; its registers lie on its stack.
struct Fiber {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  unsigned thread = 0;
  bool done = false;
  // What it waits for: the counter's value while it has to wait.
  const unsigned* waits_for = nullptr;
  unsigned generation = 0;
};

extern "C" void vtx_emulation_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl vtx_emulation_switch
.hidden vtx_emulation_switch
.type vtx_emulation_switch,@function
vtx_emulation_switch:
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
.size vtx_emulation_switch,.-vtx_emulation_switch
)");
#else
#error "the emulation switches fibers on x86-64 only"
#endif

Fiber* current = nullptr;
void* scheduler = nullptr;
const std::function<void()>* body = nullptr;
uint64_t random_state = 0;

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void to_scheduler() { vtx_emulation_switch(&current->stack_pointer, scheduler); }

void wait_for(const unsigned* counter) {
  current->waits_for = counter;
  current->generation = *counter;
  to_scheduler();
}

void fiber_main() {
  (*body)();
  current->done = true;
  to_scheduler();
  std::abort();
}

void* stacks(size_t count) {
  static void* memory = nullptr;
  static size_t size = 0;
  if (count * kStack > size) {
    if (memory) munmap(memory, size);
    size = count * kStack;
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
  }
  return memory;
}

[[noreturn]] void fail(const char* text) {
  std::fprintf(stderr, "CUDA emulation: %s\n", text);
  std::abort();
}

void run_blocks(unsigned first, unsigned count, unsigned threads, size_t shared) {
  std::vector<Block> blocks(count);
  std::vector<Fiber> fibers(static_cast<size_t>(count) * threads);
  auto* stack = static_cast<unsigned char*>(stacks(fibers.size()));
  for (unsigned b = 0; b < count; ++b) {
    Block& block = blocks[b];
    block.index = {(first + b) % grid_size.x, (first + b) / grid_size.x, 0};
    block.left = threads;
    block.shared.reset(new (std::align_val_t(16)) unsigned char[shared ? shared : 1]);
    std::memset(block.shared.get(), 0xcd, shared);  // as on a device, nothing is zero by itself
    block.warps.resize((threads + kLanes - 1) / kLanes);
    for (unsigned t = 0; t < threads; ++t) {
      ++block.warps[t / kLanes].size;
      Fiber& fiber = fibers[static_cast<size_t>(b) * threads + t];
      fiber.block = &block;
      fiber.thread = t;
      auto* top = reinterpret_cast<uint64_t*>(stack + (static_cast<size_t>(b) * threads + t + 1) * kStack);
      *--top = 0;
      *--top = reinterpret_cast<uint64_t>(&fiber_main);
      for (int i = 0; i < 6; ++i) *--top = 0;
      fiber.stack_pointer = top;
    }
  }
  std::vector<unsigned> alive(fibers.size());
  for (unsigned i = 0; i < alive.size(); ++i) alive[i] = i;
  unsigned idle = 0;
  while (!alive.empty()) {
    // One pass over all fibers, from a random place and in a random direction.
    const size_t size = alive.size(), start = random_state ? next_random() % size : 0;
    const bool backwards = random_state && next_random() % 2;
    bool progress = false;
    for (size_t step = 0; step < size; ++step) {
      Fiber& fiber = fibers[alive[(backwards ? start + size - step : start + step) % size]];
      if (fiber.done) continue;
      if (fiber.waits_for && *fiber.waits_for == fiber.generation) continue;
      progress = progress || fiber.waits_for != nullptr;
      fiber.waits_for = nullptr;
      current = &fiber;
      thread_index = {fiber.thread, 0, 0};
      block_index = fiber.block->index;
      vtx_emulation_switch(&scheduler, fiber.stack_pointer);
      if (fiber.done) {
        progress = true;
        --fiber.block->left;
        --fiber.block->warps[fiber.thread / kLanes].size;
      }
    }
    std::vector<unsigned> rest;
    rest.reserve(size);
    for (const unsigned each : alive)
      if (!fibers[each].done) rest.push_back(each);
    alive.swap(rest);
    // Blocks that wait for each other may turn for a while; a barrier that not all threads reach turns for ever.
    idle = progress ? 0 : idle + 1;
    if (idle > 1000000) fail("no thread goes on: a barrier that not all threads reach, or a wait that never ends");
  }
  for (Block& block : blocks) operator delete[](block.shared.release(), std::align_val_t(16));
}

}  // namespace

unsigned char* shared_memory() { return current->block->shared.get(); }

void block_barrier() {
  Block& block = *current->block;
  if (++block.arrived == block.warps.size() * kLanes || block.arrived == block_size.x) {
    block.arrived = 0;
    ++block.generation;
    return;
  }
  wait_for(&block.generation);
}

void warp_barrier() {
  Warp& warp = current->block->warps[current->thread / kLanes];
  if (++warp.arrived == warp.size) {
    warp.arrived = 0;
    ++warp.generation;
    return;
  }
  wait_for(&warp.generation);
}

uint64_t exchange(uint64_t value, unsigned source_lane) {
  Warp& warp = current->block->warps[current->thread / kLanes];
  warp.values[current->thread % kLanes] = value;
  warp_barrier();
  const uint64_t result = warp.values[source_lane % kLanes];
  warp_barrier();
  return result;
}

unsigned vote(bool value) {
  Warp& warp = current->block->warps[current->thread / kLanes];
  warp.values[current->thread % kLanes] = value;
  warp_barrier();
  unsigned result = 0;
  for (unsigned lane = 0; lane < warp.size; ++lane) result |= static_cast<unsigned>(warp.values[lane]) << lane;
  warp_barrier();
  return result;
}

unsigned reduce(unsigned value, Reduction by) {
  Warp& warp = current->block->warps[current->thread / kLanes];
  warp.values[current->thread % kLanes] = value;
  warp_barrier();
  unsigned result = static_cast<unsigned>(warp.values[0]);
  for (unsigned lane = 1; lane < warp.size; ++lane) {
    const unsigned other = static_cast<unsigned>(warp.values[lane]);
    result = by == Reduction::sum ? result + other : std::min(result, other);
  }
  warp_barrier();
  return result;
}

float off_in_last_bits(float value) {
  if (!std::isnormal(value)) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += (bits * 0x9e3779b1u >> 16) % 5 - 2;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

void yield() { to_scheduler(); }

int blocks_at_once() {
  const char* text = std::getenv("VTX_EMULATION_BLOCKS");
  return text ? std::atoi(text) : 8;
}

void run(unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared, bool together,
         const std::function<void()>& kernel) {
  ++vtx_emulation_launches;
  if (current) fail("a kernel was launched from a kernel");
  if (!grid_x || !grid_y || grid_y > 65535 || !threads || threads > 1024 || threads % kLanes) fail("bad launch sizes");
  if (shared > 99 * 1024) fail("more shared memory than every GPU has");
  const char* seed = std::getenv("VTX_EMULATION_SEED");
  random_state = seed ? std::strtoull(seed, nullptr, 10) * 0x9e3779b97f4a7c15ull : 0;
  body = &kernel;
  grid_size = {grid_x, grid_y, 1};
  block_size = {threads, 1, 1};
  const unsigned blocks = grid_x * grid_y;
  if (together) {
    if (blocks > static_cast<unsigned>(blocks_at_once())) fail("more blocks together than run at once");
    run_blocks(0, blocks, threads, shared);
  } else {
    for (unsigned block = 0; block < blocks; ++block) run_blocks(block, 1, threads, shared);
  }
  current = nullptr;
}

}  // namespace vtx::emulation
