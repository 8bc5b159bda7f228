// Kernels in CUDA C++ behind XLA's foreign function interface. They are compiled where they run, by NVRTC, which comes
// with jax[cuda], as is the driver's library: both are opened at run time, so that this builds without CUDA.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
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
  int (*architecture_count)(int* count);
  int (*architectures)(int* architectures);

  int (*start)(unsigned flags);
  int (*stream_context)(void* stream, void** context);
  int (*push_context)(void* context);
  int (*pop_context)(void** context);
  int (*device_attribute)(int* value, int attribute, int device);
  int (*load)(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned);
  int (*kernel)(void** kernel, void* library, const char* name);
  int (*launch)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
};

// A kernel that one thread compiles, while others may wait for it. All GPUs of an architecture share it.
struct Kernel {
  std::once_flag once;
  void* function = nullptr;
  std::string error;
};

Cuda cuda;
bool opened = false;
std::string source;
std::mutex kernels_mutex;
std::unordered_map<std::string, Kernel> kernels;  // by architecture and definitions

template <typename Function>
bool Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

void Compile(int architecture, std::string_view definitions, Kernel& kernel) {
  std::vector<std::string> options{"--gpu-architecture=sm_" + std::to_string(architecture), "--std=c++17"};
  std::istringstream words{std::string(definitions)};
  for (std::string word; words >> word;) options.push_back("-D" + word);
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
  if (code.empty()) return;
  void* library;
  int error = cuda.load(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (!error) error = cuda.kernel(&kernel.function, library, "run");
  if (error) kernel.error = "the driver does not load it (error " + std::to_string(error) + ")";
}

// 90 for compute capability 9.0, as NVRTC counts them; 0 where there is no such GPU.
int Architecture(int device) {
  int major = 0, minor = 0;
  cuda.device_attribute(&major, 75, device);
  cuda.device_attribute(&minor, 76, device);
  return 10 * major + minor;
}

// The kernel for a device, compiled where it is asked for the first time.
Kernel& Compiled(std::string_view definitions, int device) {
  const int architecture = Architecture(device);
  Kernel* kernel;
  {
    const std::string key = std::to_string(architecture) + std::string(definitions);
    const std::lock_guard<std::mutex> lock(kernels_mutex);
    kernel = &kernels[key];
  }
  std::call_once(kernel->once, Compile, architecture, definitions, std::ref(*kernel));
  return *kernel;
}

ffi::Error Failed(std::string_view definitions, const std::string& error) {
  return ffi::Error::Internal("depthwise.cu with " + std::string(definitions) + ": " + error);
}

// Before the first start, and before a graph of kernels is recorded, during which nothing may be loaded.
ffi::Error Prepare(int32_t device, std::string_view definitions, int64_t, int64_t, ffi::RemainingArgs,
                   ffi::RemainingRets) {
  if (!opened) return Failed(definitions, "dcls_jax.native.cuda.available() has not been asked in this process");
  const Kernel& kernel = Compiled(definitions, device);
  return kernel.error.empty() ? ffi::Error::Success() : Failed(definitions, kernel.error);
}

ffi::Error Launch(void* stream, int32_t device, std::string_view definitions, int64_t blocks, int64_t threads,
                  ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> out) {
  const Kernel& kernel = Compiled(definitions, device);
  void *first = a.untyped_data(), *second = b.untyped_data(), *result = out->untyped_data(), *context;
  void* arguments[] = {&first, &second, &result};
  if (cuda.stream_context(stream, &context) || cuda.push_context(context))
    return Failed(definitions, "the stream has no context");
  const int error = cuda.launch(kernel.function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
  cuda.pop_context(&context);
  return error ? Failed(definitions, "CUDA does not start it (error " + std::to_string(error) + ")")
               : ffi::Error::Success();
}

}  // namespace dcls

// Compiles a kernel for the first GPU, so that it is there when it is asked for; returns what went wrong, or "".
extern "C" const char* dcls_cuda_compile(const char* definitions) {
  return dcls::Compiled(definitions, 0).error.c_str();
}

// Opens NVRTC and the driver, and keeps the source of the kernels. Returns 0, or 1 where a library or a function is not
// there, or there is no GPU that this NVRTC compiles for.
extern "C" int dcls_cuda_open(const char* nvrtc_path, const char* source) {
  void* nvrtc = dlopen(nvrtc_path, RTLD_NOW | RTLD_LOCAL);
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!nvrtc || !driver) return 1;
  auto& c = dcls::cuda;
  const auto in_nvrtc = [&](const char* name, auto& function) { return dcls::Find(nvrtc, name, function); };
  const auto in_driver = [&](const char* name, auto& function) { return dcls::Find(driver, name, function); };
  const bool found =
      in_nvrtc("nvrtcCreateProgram", c.create) && in_nvrtc("nvrtcCompileProgram", c.compile) &&
      in_nvrtc("nvrtcGetProgramLogSize", c.log_size) && in_nvrtc("nvrtcGetProgramLog", c.log) &&
      in_nvrtc("nvrtcGetCUBINSize", c.code_size) && in_nvrtc("nvrtcGetCUBIN", c.code) &&
      in_nvrtc("nvrtcDestroyProgram", c.destroy) && in_nvrtc("nvrtcGetNumSupportedArchs", c.architecture_count) &&
      in_nvrtc("nvrtcGetSupportedArchs", c.architectures) && in_driver("cuInit", c.start) &&
      in_driver("cuStreamGetCtx", c.stream_context) && in_driver("cuCtxPushCurrent_v2", c.push_context) &&
      in_driver("cuCtxPopCurrent_v2", c.pop_context) && in_driver("cuDeviceGetAttribute", c.device_attribute) &&
      in_driver("cuLibraryLoadData", c.load) && in_driver("cuLibraryGetKernel", c.kernel) &&
      in_driver("cuLaunchKernel", c.launch);
  int count = 0;
  if (!found || c.start(0) || c.architecture_count(&count)) return 1;
  std::vector<int> known(count);
  if (c.architectures(known.data())) return 1;
  dcls::source = source;
  dcls::opened = std::count(known.begin(), known.end(), dcls::Architecture(0)) > 0;
  return !dcls::opened;
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_cuda_prepare, dcls::Prepare,
                              ffi::Ffi::BindInitialize()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Attr<std::string_view>("definitions")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("threads")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_cuda_launch, dcls::Launch,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<void*>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Attr<std::string_view>("definitions")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("threads")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>(),
                              {ffi::Traits::kCmdBufferCompatible});
