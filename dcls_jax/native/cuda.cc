// Kernels in CUDA C++ behind XLA's foreign function interface. They are compiled where they run, by NVRTC, which comes
// with jax[cuda], as is the driver's library: both are opened at run time, so that this builds without CUDA.

#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace dcls {

// What is called of NVRTC and of the driver, both of which return 0 where all went well.
struct Cuda {
  int (*create)(void** program, const char* source, const char* name, int, const char* const*, const char* const*);
  int (*compile)(void* program, int count, const char* const* options);
  int (*log_size)(void* program, size_t* size);
  int (*log)(void* program, char* text);
  int (*code_size)(void* program, size_t* size);
  int (*code)(void* program, char* code);
  int (*destroy)(void** program);

  int (*stream_context)(void* stream, void** context);
  int (*push_context)(void* context);
  int (*pop_context)(void** context);
  int (*current_device)(int* device);
  int (*device_attribute)(int* value, int attribute, int device);
  int (*load)(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned);
  int (*kernel)(void** kernel, void* library, const char* name);
  int (*launch)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
};

// A kernel that one thread compiles, while others may wait for it.
struct Kernel {
  std::once_flag once;
  void* function = nullptr;
  std::string error;
};

Cuda cuda;
std::string source;
std::mutex kernels_mutex;
std::map<std::string, Kernel> kernels;  // by entry, architecture and definitions; for all GPUs of an architecture

template <typename Function>
bool Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

std::string Architecture(int device) {
  int major = 0, minor = 0;
  cuda.device_attribute(&major, 75, device);
  cuda.device_attribute(&minor, 76, device);
  return "--gpu-architecture=sm_" + std::to_string(10 * major + minor);
}

void Compile(std::string_view entry, const std::vector<std::string>& options, Kernel& kernel) {
  std::vector<const char*> arguments;
  for (const auto& option : options) arguments.push_back(option.c_str());
  void* program;
  size_t size = 0;
  if (cuda.create(&program, source.c_str(), "depthwise.cu", 0, nullptr, nullptr)) {
    kernel.error = "NVRTC makes no program";
    return;
  }
  std::string code;
  if (cuda.compile(program, arguments.size(), arguments.data())) {
    cuda.log_size(program, &size);
    kernel.error.resize(size);
    cuda.log(program, kernel.error.data());
  } else {
    cuda.code_size(program, &size);
    code.resize(size);
    cuda.code(program, code.data());
  }
  cuda.destroy(&program);
  void* library;
  if (code.empty()) return;
  int error = cuda.load(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (!error) error = cuda.kernel(&kernel.function, library, std::string(entry).c_str());
  if (error) kernel.error = "the driver does not load it (error " + std::to_string(error) + ")";
}

// The kernel for a device, compiled if it is asked for the first time.
Kernel& Compiled(std::string_view entry, std::string_view definitions, int device) {
  std::vector<std::string> options{Architecture(device), "--std=c++17"};
  std::istringstream words{std::string(definitions)};
  for (std::string word; words >> word;) options.push_back("-D" + word);
  std::string key(entry);
  for (const auto& option : options) key += " " + option;
  Kernel* kernel;
  {
    const std::lock_guard<std::mutex> lock(kernels_mutex);
    kernel = &kernels[key];
  }
  std::call_once(kernel->once, Compile, entry, options, std::ref(*kernel));
  return *kernel;
}

ffi::Error Launch(void* stream, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> out,
                  std::string_view entry, std::string_view definitions, int64_t blocks, int64_t threads) {
  void* context;
  int device;
  if (cuda.stream_context(stream, &context) || cuda.push_context(context))
    return ffi::Error::Internal("the stream has no context");
  std::string error;
  if (cuda.current_device(&device)) {
    error = "the context has no device";
  } else if (const Kernel& kernel = Compiled(entry, definitions, device); !kernel.error.empty()) {
    error = kernel.error;
  } else {
    void *first = a.untyped_data(), *second = b.untyped_data(), *result = out->untyped_data();
    void* arguments[] = {&first, &second, &result};
    const int code = cuda.launch(kernel.function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
    if (code) error = "CUDA does not start it (error " + std::to_string(code) + ")";
  }
  cuda.pop_context(&context);
  if (error.empty()) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(entry) + " " + std::string(definitions) + ": " + error);
}

}  // namespace dcls

// Compiles a kernel for the first GPU, so that it is there when it is asked for.
extern "C" void dcls_cuda_compile(const char* entry, const char* definitions) { dcls::Compiled(entry, definitions, 0); }

// Opens NVRTC and the driver, and keeps the source; 0, or 1 where a library or a function is not there.
extern "C" int dcls_cuda_open(const char* nvrtc_path, const char* source) {
  void* nvrtc = dlopen(nvrtc_path, RTLD_NOW | RTLD_LOCAL);
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  auto& c = dcls::cuda;
  dcls::source = source;
  return !(nvrtc && driver && dcls::Find(nvrtc, "nvrtcCreateProgram", c.create) &&
           dcls::Find(nvrtc, "nvrtcCompileProgram", c.compile) &&
           dcls::Find(nvrtc, "nvrtcGetProgramLogSize", c.log_size) &&
           dcls::Find(nvrtc, "nvrtcGetProgramLog", c.log) && dcls::Find(nvrtc, "nvrtcGetCUBINSize", c.code_size) &&
           dcls::Find(nvrtc, "nvrtcGetCUBIN", c.code) && dcls::Find(nvrtc, "nvrtcDestroyProgram", c.destroy) &&
           dcls::Find(driver, "cuStreamGetCtx", c.stream_context) &&
           dcls::Find(driver, "cuCtxPushCurrent_v2", c.push_context) &&
           dcls::Find(driver, "cuCtxPopCurrent_v2", c.pop_context) &&
           dcls::Find(driver, "cuCtxGetDevice", c.current_device) &&
           dcls::Find(driver, "cuDeviceGetAttribute", c.device_attribute) &&
           dcls::Find(driver, "cuLibraryLoadData", c.load) && dcls::Find(driver, "cuLibraryGetKernel", c.kernel) &&
           dcls::Find(driver, "cuLaunchKernel", c.launch));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_cuda_launch, dcls::Launch,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<void*>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::string_view>("entry")
                                  .Attr<std::string_view>("definitions")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("threads"));
