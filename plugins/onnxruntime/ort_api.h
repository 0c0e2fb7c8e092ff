// The part of ONNX Runtime's C API that a library of operators needs, declared by hand: no package of ONNX Runtime for
// Python has its headers. The table of functions only grows at its end, so an entry keeps its place in every version,
// and so do the fields of the structure that describes an operator.
#ifndef VTX_ORT_API_H
#define VTX_ORT_API_H

#include <cstddef>
#include <cstdint>

namespace vtx {

// Opaque structures of ONNX Runtime; a status that is not NULL is an error and has to be released or returned.
struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtShape;
struct OrtOptions;
struct OrtDomain;

struct OrtApi {
  void* entries[275];
};

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*version)();
};

constexpr uint32_t kApiVersion = 17;       // the first with ParallelFor
constexpr uint32_t kOperatorVersion = 16;  // the first with functions that return a status

enum OrtErrorCode { kFailed = 1, kInvalidArgument = 2 };
enum OrtElement { kFloat = 1, kInt64 = 7, kBool = 9, kFloat16 = 10, kBFloat16 = 16 };
enum OrtCharacteristic { kRequired = 0, kOptional = 1 };

// Places in the table, with what stands there.
template <size_t Place, typename... Arguments>
struct Entry {
  static OrtStatus* call(const OrtApi* api, Arguments... arguments) {
    return reinterpret_cast<OrtStatus* (*)(Arguments...)>(api->entries[Place])(arguments...);
  }
};

using CreateStatus = Entry<0, OrtErrorCode, const char*>;
using CreateCustomOpDomain = Entry<26, const char*, OrtDomain**>;
using CustomOpDomainAdd = Entry<27, OrtDomain*, const struct OrtCustomOp*>;
using AddCustomOpDomain = Entry<28, OrtOptions*, OrtDomain*>;
using GetTensorMutableData = Entry<51, OrtValue*, void**>;
using GetDimensionsCount = Entry<61, const OrtShape*, size_t*>;
using GetDimensions = Entry<62, const OrtShape*, int64_t*, size_t>;
using GetTensorTypeAndShape = Entry<65, const OrtValue*, OrtShape**>;
using GetAttributeFloat = Entry<85, const OrtKernelInfo*, const char*, float*>;
using GetAttributeInt = Entry<86, const OrtKernelInfo*, const char*, int64_t*>;
using GetAttributeString = Entry<87, const OrtKernelInfo*, const char*, char*, size_t*>;
using GetInputCount = Entry<88, const OrtKernelContext*, size_t*>;
using GetOutputCount = Entry<89, const OrtKernelContext*, size_t*>;
using GetInput = Entry<90, const OrtKernelContext*, size_t, const OrtValue**>;
using GetOutput = Entry<91, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>;
using ParallelFor = Entry<274, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>;

inline void release(const OrtApi* api, OrtStatus* status) {
  if (status) reinterpret_cast<void (*)(OrtStatus*)>(api->entries[93])(status);
}

inline void release(const OrtApi* api, OrtShape* shape) {
  if (shape) reinterpret_cast<void (*)(OrtShape*)>(api->entries[99])(shape);
}

struct OrtCustomOp {
  uint32_t version;
  void* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*name)(const OrtCustomOp*);
  const char* (*provider)(const OrtCustomOp*);
  OrtElement (*input_type)(const OrtCustomOp*, size_t);
  size_t (*input_count)(const OrtCustomOp*);
  OrtElement (*output_type)(const OrtCustomOp*, size_t);
  size_t (*output_count)(const OrtCustomOp*);
  void (*compute)(void*, OrtKernelContext*);
  void (*destroy)(void*);
  OrtCharacteristic (*input_characteristic)(const OrtCustomOp*, size_t);
  OrtCharacteristic (*output_characteristic)(const OrtCustomOp*, size_t);
  int (*input_memory)(const OrtCustomOp*, size_t);
  int (*variadic[4])(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute_v2)(void*, OrtKernelContext*);
  void* later[8];  // of versions above kOperatorVersion
};

}  // namespace vtx

#endif
