// CUDA's language as far as plugins/kernels uses it, on the CPU: every thread of a grid is a fiber.
//
// This is no model of a GPU's speed or of its memory order. It runs the kernels' own sources, so that what they
// compute, that every thread reaches every barrier and that no access leaves its memory (with AddressSanitizer) are
// tested where there is no GPU. Fibers run in an order drawn from a seed (VTX_EMULATION_SEED), and change places at
// barriers and warp operations only, so a missing barrier shows as results that depend on the seed.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "vtx_ops.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

namespace vtx::emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Of the fiber that runs.
extern Index thread_index, block_index, block_size, grid_size;
unsigned char* shared_memory();
void block_barrier();
void warp_barrier();
void yield();
// Puts `bytes` of `value` where the warp's lane `lane` is read from, for the operation going on.
uint64_t exchange(uint64_t value, unsigned source_lane);
unsigned vote(bool value);
enum class Reduction { sum, least };
unsigned reduce(unsigned value, Reduction by);
// As far off as CUDA allows its quick functions to be: by up to two of the last bit's units, up or down.
float off_in_last_bits(float value);

// Runs body() in every thread of the grid; with `together` all blocks at the same time.
void run(unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared, bool together,
         const std::function<void()>& body);
int blocks_at_once();

template <class T>
T exchange_as(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, source_lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace vtx::emulation

#define threadIdx (::vtx::emulation::thread_index)
#define blockIdx (::vtx::emulation::block_index)
#define blockDim (::vtx::emulation::block_size)
#define gridDim (::vtx::emulation::grid_size)
#define VTX_SHARED(name) unsigned char* const name = ::vtx::emulation::shared_memory()

inline void __syncthreads() { vtx::emulation::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { vtx::emulation::warp_barrier(); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return vtx::emulation::exchange_as(value, static_cast<unsigned>(lane) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return vtx::emulation::exchange_as(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32;
  return vtx::emulation::exchange_as(value, lane < delta ? lane : lane - delta);
}
inline unsigned __ballot_sync(unsigned, bool value) { return vtx::emulation::vote(value); }
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  return vtx::emulation::reduce(value, vtx::emulation::Reduction::sum);
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return vtx::emulation::reduce(value, vtx::emulation::Reduction::least);
}
inline bool __any_sync(unsigned, bool value) { return vtx::emulation::vote(value) != 0; }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
struct emulated_half {
  unsigned short bits;
};
inline emulated_half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(emulated_half value) { return value.bits; }
inline float __half2float(emulated_half value) { return _cvtsh_ss(value.bits); }
inline emulated_half __float2half_rn(float value) { return {static_cast<unsigned short>(_cvtss_sh(value, 0))}; }
inline float rsqrtf(float value) { return vtx::emulation::off_in_last_bits(1.0f / std::sqrt(value)); }
inline float __fdividef(float a, float b) { return vtx::emulation::off_in_last_bits(a / b); }

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace vtx {

inline unsigned load_volatile(const unsigned* address) { return *static_cast<const volatile unsigned*>(address); }
inline void spin_hint() { emulation::yield(); }

template <class... Parameters>
vtx_status blocks_at_once(void (*)(Parameters...), int, size_t, int* count) {
  *count = emulation::blocks_at_once();
  return VTX_OK;
}

}  // namespace vtx
