// What every kernel here is written with: element types, orders of floats, warp and block operations, launches.
//
// Kernels use dynamic shared memory alone, threads of a block in one dimension, and the functions below instead of
// CUDA's own where the two differ. So the same sources also compile as C++ against tests/plugins/emulation, which runs
// every thread of a grid as a fiber: how they are tested where there is no GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "vtx_cuda.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define VTX_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define VTX_NOINLINE __noinline__
namespace vtx {
__device__ __forceinline__ unsigned load_volatile(const unsigned* address) {
  return *static_cast<const volatile unsigned*>(address);
}
__device__ __forceinline__ void spin_hint() {}
}  // namespace vtx
#else
#include "cuda_emulation.h"
#define VTX_NOINLINE
#endif

namespace vtx {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kTiny = 1e-30f;  // floor of squared norms: zero rows give zeros and not NaN

template <class T>
__host__ __device__ constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
__host__ __device__ constexpr T larger(T a, T b) {
  return a < b ? b : a;
}
template <class T>
__host__ __device__ constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}
template <class T>
__host__ __device__ constexpr T round_up(T a, T b) {
  return divide_up(a, b) * b;
}

// numerator / denominator of whole numbers from 0, rounded; an exact half to the even neighbour.
__host__ __device__ constexpr int rounded_quotient(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator, rest = numerator - quotient * denominator;
  return static_cast<int>(quotient + (2 * rest > denominator || (2 * rest == denominator && quotient % 2 == 1)));
}

// ---------------------------------------------------------------------------------------------- element types

__host__ __device__ constexpr int element_bytes(vtx_dtype type) { return type == VTX_FLOAT32 ? 4 : 2; }

// Element `index` of a tensor of `type` as float. The branch is the same for a whole grid.
__device__ __forceinline__ float load(const void* data, size_t index, vtx_dtype type) {
  if (type == VTX_FLOAT32) return static_cast<const float*>(data)[index];
  const unsigned short bits = static_cast<const unsigned short*>(data)[index];
  return type == VTX_FLOAT16 ? __half2float(__ushort_as_half(bits))
                             : __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// Rounds to nearest even.
__device__ __forceinline__ void store(void* data, size_t index, vtx_dtype type, float value) {
  if (type == VTX_FLOAT32) {
    static_cast<float*>(data)[index] = value;
  } else if (type == VTX_FLOAT16) {
    static_cast<unsigned short*>(data)[index] = __half_as_ushort(__float2half_rn(value));
  } else {
    unsigned bits = __float_as_uint(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? 0x7fc00000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    static_cast<unsigned short*>(data)[index] = static_cast<unsigned short>(bits >> 16);
  }
}

// ---------------------------------------------------------------------------------------------- orders

// A whole number that orders as the float does; NaN is below everything, and -0 equals 0.
__device__ __forceinline__ unsigned order_of(float value) {
  if (!(value == value)) return 0u;
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Ordering by descending value, then ascending index, as ascending numbers.
__device__ __forceinline__ uint64_t best_first(float value, unsigned index) {
  return (static_cast<uint64_t>(~order_of(value)) << 32) | index;
}

// ---------------------------------------------------------------------------------------------- warps and blocks

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int thread_id() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int thread_count() { return static_cast<int>(blockDim.x); }

__device__ __forceinline__ float warp_sum(float value) {
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
__device__ __forceinline__ double warp_sum(double value) {
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
__device__ __forceinline__ int warp_sum(int value) {
  return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(value)));
}
// The least of the warp's numbers: of the upper halves first, then of the lower halves that go with it.
__device__ __forceinline__ uint64_t warp_least(uint64_t value) {
  const unsigned upper = static_cast<unsigned>(value >> 32), least = __reduce_min_sync(kAllLanes, upper);
  const unsigned lower = upper == least ? static_cast<unsigned>(value) : ~0u;
  return (static_cast<uint64_t>(least) << 32) | __reduce_min_sync(kAllLanes, lower);
}

__device__ __forceinline__ void add_to(float4& sum, const float4& value) {
  sum.x += value.x;
  sum.y += value.y;
  sum.z += value.z;
  sum.w += value.w;
}

// Sums over the block, the same in every thread; `scratch` holds one element a warp. Called by all threads.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  const int warps = thread_count() / kWarp;
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  T total = scratch[0];
  for (int warp = 1; warp < warps; ++warp) total += scratch[warp];
  __syncthreads();
  return total;
}

__device__ __forceinline__ uint64_t block_least(uint64_t value, uint64_t* scratch) {
  value = warp_least(value);
  const int warps = thread_count() / kWarp;
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  uint64_t least = scratch[0];
  for (int warp = 1; warp < warps; ++warp) least = smaller(least, scratch[warp]);
  __syncthreads();
  return least;
}

// How many threads before this one have `flag` set; *total grows by all of them. `scratch` holds one int a warp. Called
// by all threads.
__device__ __forceinline__ int place_among(bool flag, int* scratch, int* total) {
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  const int warps = thread_count() / kWarp;
  if (lane_id() == 0) scratch[warp_id()] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane_id()) - 1u)), sum = 0;
  for (int warp = 0; warp < warps; ++warp) {
    if (warp < warp_id()) before += scratch[warp];
    sum += scratch[warp];
  }
  __syncthreads();
  *total += sum;
  return before;
}

// A barrier of `members` blocks that run at the same time (a cooperative launch). `arrived` is 0 before the first one
// and belongs to these blocks; `round` counts this block's barriers.
__device__ __forceinline__ void blocks_sync(unsigned* arrived, unsigned members, unsigned& round) {
  __syncthreads();
  ++round;
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    while (load_volatile(arrived) < round * members) spin_hint();
    __threadfence();
  }
  __syncthreads();
}

// The threads of a block copy a row of an even number of bytes, by 16 where everything is aligned to them.
__device__ __forceinline__ void copy_row(const unsigned char* from, unsigned char* to, int bytes) {
  const bool aligned =
      bytes % 16 == 0 && (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
  if (aligned) {
#pragma unroll 2
    for (int i = thread_id() * 16; i < bytes; i += thread_count() * 16)
      *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
  } else {
#pragma unroll 2
    for (int i = thread_id() * 2; i < bytes; i += thread_count() * 2)
      *reinterpret_cast<unsigned short*>(to + i) = *reinterpret_cast<const unsigned short*>(from + i);
  }
}

// ---------------------------------------------------------------------------------------------- launches

struct Grid {
  int x, y;
};

constexpr size_t kSharedUnasked = 48 * 1024;  // shared memory that a block may have without more ado
constexpr size_t kMostShared = 99 * 1024;     // what every GPU from compute capability 8.0 on gives a block that asks
constexpr int kMostGridY = 65535;

// What the last CUDA call of this thread that failed was.
void remember_error(const char* text);

#ifdef __CUDACC__
inline vtx_status checked(cudaError_t error) {
  if (error == cudaSuccess) return VTX_OK;
  cudaGetLastError();  // it is reported here; a caller with the same runtime shall not find it again
  remember_error(cudaGetErrorString(error));
  return VTX_DEVICE_ERROR;
}

// Lets a kernel have more than kSharedUnasked of dynamic shared memory: always up to kMostShared. An amount that went
// by the call could be lowered by another thread's call between here and the launch.
template <class... Parameters>
vtx_status allow_shared(void (*kernel)(Parameters...), size_t shared) {
  if (shared <= kSharedUnasked) return VTX_OK;
  return checked(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostShared)));
}

// Enqueues kernel(arguments...). With `together` all blocks run at the same time, so that they may wait for each other.
template <class... Parameters, class... Arguments>
vtx_status launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared, vtx_stream stream,
                  bool together, Arguments... arguments) {
  const vtx_status allowed = allow_shared(kernel, shared);
  if (allowed != VTX_OK) return allowed;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = together ? 1 : 0;
  return checked(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// How many blocks of this kernel the current device runs at the same time.
template <class... Parameters>
vtx_status blocks_at_once(void (*kernel)(Parameters...), int threads, size_t shared, int* count) {
  int device = 0, processors = 0, each = 0;
  auto status = checked(cudaGetDevice(&device));
  if (status == VTX_OK) status = checked(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  if (status == VTX_OK) status = allow_shared(kernel, shared);
  if (status == VTX_OK) status = checked(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared));
  *count = larger(1, processors * each);
  return status;
}
#else
template <class... Parameters, class... Arguments>
vtx_status launch(void (*kernel)(Parameters...), Grid grid, int threads, size_t shared, vtx_stream, bool together,
                  Arguments... arguments) {
  emulation::run(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(threads), shared,
                 together, [&] { kernel(static_cast<Parameters>(arguments)...); });
  return VTX_OK;
}
#endif

// ---------------------------------------------------------------------------------------------- workspace

// Takes arrays from one piece of memory; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(size_t count) {
    const size_t start = used_;
    used_ = round_up<size_t>(used_ + count * sizeof(T), 256);
    return base_ ? reinterpret_cast<T*>(base_ + start) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace vtx
