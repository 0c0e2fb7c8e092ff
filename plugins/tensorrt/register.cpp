// libvtexport_plugin_register.so: for tools that only open a plugin library and expect that it registers itself, as
// `polygraphy run --plugins` and `trtexec --staticPlugins` do. Opened, it has the TensorRT of the process load
// libvtexport_plugin.so, which lies beside it, into its registry.
//
// libvtexport_plugin.so cannot do that itself: TensorRT's loadLibrary opens it too, and would find its creators twice.
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace vtx {
namespace registering {

constexpr const char* kPlugins = "libvtexport_plugin.so";

void complain(const std::string& sentence) { std::fprintf(stderr, "vtexport: %s\n", sentence.c_str()); }

// Paths of what is loaded; empty where it is not.
struct Loaded {
  std::string tensorrt, rtx;
};

// dl_iterate_phdr's callback: keeps the path of a loaded TensorRT, of the full one before others, and of RTX.
int keep_loaded(dl_phdr_info* info, size_t, void* kept) {
  auto& [path, rtx] = *static_cast<Loaded*>(kept);
  const std::string name = info->dlpi_name ? info->dlpi_name : "";
  const std::string file = name.substr(name.rfind('/') + 1);
  if (file.rfind("libtensorrt_rtx.so", 0) == 0) rtx = name;
  const bool is_full = file.rfind("libnvinfer.so", 0) == 0;
  const bool is_part = file.rfind("libnvinfer_lean.so", 0) == 0 || file.rfind("libnvinfer_dispatch.so", 0) == 0;
  if (is_full || (is_part && path.empty())) path = name;
  return is_full;
}

// TensorRT as it is in the process, else as the system has it, where the tool has not loaded it yet.
void* open_tensorrt(const std::string& path) {
  if (!path.empty()) return dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  return dlopen(("libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR)).c_str(), RTLD_LAZY);
}

template <class Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

void load() {
  Dl_info here{};
  if (!dladdr(reinterpret_cast<void*>(&load), &here) || !here.dli_fname)
    return complain("the library's folder is unknown");
  const std::string own = here.dli_fname;
  const std::string plugins = own.substr(0, own.rfind('/') + 1) + kPlugins;
  Loaded loaded;
  dl_iterate_phdr(keep_loaded, &loaded);
  if (loaded.tensorrt.empty() && !loaded.rtx.empty()) {
    return complain(
        "this process has TensorRT-RTX, for which opening this library registers nothing; have its plugin "
        "registry load " +
        plugins);
  }
  void* tensorrt = open_tensorrt(loaded.tensorrt);
  if (!tensorrt) {
    return complain("TensorRT is not in this process yet, so no plugin is registered; import tensorrt first, or set " +
                    std::string("LD_LIBRARY_PATH to the folder of libnvinfer"));
  }
  auto* version = find<int32_t()>(tensorrt, "getInferLibVersion");
  auto* registry = find<nvinfer1::IPluginRegistry*()>(tensorrt, "getPluginRegistry");
  const int32_t major = version ? version() / 10000 : 0;
  // The registry's table of virtual functions is another in another major version.
  if (major != NV_TENSORRT_MAJOR || !registry || !registry()) {
    return complain("these plugins were built for TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + " and here is " +
                    std::to_string(major) + ", so none is registered; build them with its headers");
  }
  if (!registry()->loadLibrary(plugins.c_str())) complain("TensorRT does not load " + plugins + "; its log says why");
}

__attribute__((constructor)) void when_opened() { load(); }

}  // namespace registering
}  // namespace vtx
