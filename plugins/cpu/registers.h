// What the files of one instruction set share: the vector types as wide as its registers, and the names of their
// functions. CMake compiles these files several times, with VTX_KERNELS set to another name and the compiler told
// another instruction set. Everything with a body stands in an anonymous namespace, and no other header with inline
// functions may come in there, because a linker could keep the one instruction set's copy of them for all.
#ifndef VTX_CPU_REGISTERS_H
#define VTX_CPU_REGISTERS_H

#include "kernels.h"

#ifndef VTX_KERNELS
#error "VTX_KERNELS names the instruction set"
#endif

namespace vtx {

// See Kernels for what they do.
namespace VTX_KERNELS {

void block(const float* a, const float* b, size_t k, size_t rows, float* c);
void block_double(const double* a, const double* b, size_t k, size_t rows, double* c);
void skinny(const float* a, size_t row_stride, size_t k_stride, const float* b, size_t rows, size_t k, float* c,
            float sign, bool overwrite);
void square(const float* block, size_t rows, double* out);
void dots(const float* x, const float* const* rows, size_t count, size_t width, float* out);
void dense_values(double* matrix, size_t n, size_t count, double* values, double* work);
void dense_vectors(const double* matrix, size_t n, size_t first, size_t last, double* values, double* vectors,
                   const double* work, double* scratch);

}  // namespace VTX_KERNELS

namespace {

#if defined(__AVX512F__)
constexpr size_t kBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kBytes = 32;
#else
constexpr size_t kBytes = 16;
#endif

template <typename Scalar>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(kBytes)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(kBytes)));
};
typedef Register<float>::type Floats;
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
constexpr size_t kFloats = kBytes / sizeof(float);

template <typename Vector, typename Scalar>
inline Vector load(const Scalar* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename Vector, typename Scalar>
inline void store(Scalar* to, const Vector& value) {
  __builtin_memcpy(to, &value, sizeof value);
}

inline Floats broadcast(float value) {
  Floats all;
  for (size_t i = 0; i < kFloats; ++i) all[i] = value;
  return all;
}

inline float across(const Floats& value) {
  float sum = 0.0f;
  for (size_t i = 0; i < kFloats; ++i) sum += value[i];
  return sum;
}

}  // namespace
}  // namespace vtx

#endif
