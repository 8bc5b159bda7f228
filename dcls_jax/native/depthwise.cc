// Depthwise convolution on the CPU behind XLA's foreign function interface: channels-last images, float32 or bfloat16,
// strides 1 and 2, and the gradient to the kernel at stride 1.
//
// One work item is a band of rows of one image and some blocks of channels, copied to a contiguous array of vectors; a
// tile of output columns stays in registers over all kernel rows; padding is skipped, not multiplied.
// Built for AVX-512, AVX2 and the plain instruction set; the best is chosen at run time.

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace dcls {

struct Problem {
  long batch, height, width, channels, kernel_height, kernel_width, out_height, out_width, pad_top, pad_left, stride;
};

// What one work item computes: rows [row, end_row) of one image's output, channels of blocks [block, end_block).
struct Part {
  long image, row, end_row, block, end_block;
};

struct BFloat16 {
  uint16_t bits;
};

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif
#define VARIANT avx512
#define LANES 16
#include "depthwise_kernels.inc"
#undef VARIANT
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define VARIANT avx2
#define LANES 8
#include "depthwise_kernels.inc"
#undef VARIANT
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__

#define VARIANT plain
#define LANES 4
#include "depthwise_kernels.inc"
#undef VARIANT
#undef LANES

template <typename T>
struct Kernels {
  long lanes;
  void (*forward)(const Problem&, const T*, const T*, T*, const Part&);
  void (*backward)(const Problem&, const T*, const T*, float*, long, long);
};

// level: 2 allows AVX-512, 1 AVX2, 0 neither.
template <typename T>
Kernels<T> Best(int64_t level) {
#if defined(__x86_64__)
  if (level >= 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return {avx512::kLanes, avx512::Forward<T>, avx512::Backward<T>};
  if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {avx2::kLanes, avx2::Forward<T>, avx2::Backward<T>};
#endif
  return {plain::kLanes, plain::Forward<T>, plain::Backward<T>};
}

template <typename T>
void RunForward(ffi::ThreadPool& pool, const Problem& p, int64_t level, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                ffi::Result<ffi::AnyBuffer> out) {
  const auto kernels = Best<T>(level);
  const long blocks = (p.channels + kernels.lanes - 1) / kernels.lanes;
  const auto* image = static_cast<const T*>(x.untyped_data());
  const auto* cells = static_cast<const T*>(kernel.untyped_data());
  auto* result = static_cast<T*>(out->untyped_data());
  // As many channels at a time as have their kernels in 32 KiB, to read memory in its order; but items for all threads.
  const long rows = std::max(14L, 4 * p.kernel_height), bands = (p.out_height + rows - 1) / rows;
  const long fit = 32768 / (p.kernel_height * p.kernel_width * kernels.lanes * 4);
  const long share = p.batch * bands * blocks / (4 * pool.num_threads());
  const long group = std::max(std::min(fit, share), 1L), groups = (blocks + group - 1) / group;
  ParallelFor(pool, p.batch * bands * groups, [&](long item) {
    const long block = item % groups * group, row = item / groups % bands * rows;
    kernels.forward(p, image, cells, result,
                    {item / groups / bands, row, std::min(row + rows, p.out_height), block,
                     std::min(block + group, blocks)});
  });
}

template <typename T>
void RunBackward(ffi::ThreadPool& pool, const Problem& p, int64_t level, ffi::AnyBuffer x, ffi::AnyBuffer grad,
                 ffi::Result<ffi::AnyBuffer> out) {
  const auto kernels = Best<T>(level);
  const long blocks = (p.channels + kernels.lanes - 1) / kernels.lanes;
  const auto* image = static_cast<const T*>(x.untyped_data());
  const auto* grads = static_cast<const T*>(grad.untyped_data());
  auto* result = static_cast<float*>(out->untyped_data());
  ParallelFor(pool, p.batch * blocks,
              [&](long item) { kernels.backward(p, image, grads, result, item / blocks, item % blocks); });
}

// x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C)
ffi::Error Depthwise(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> out,
                     int64_t pad_top, int64_t pad_left, int64_t stride, int64_t level) {
  const auto s = x.dimensions(), k = kernel.dimensions(), o = out->dimensions();
  const Problem p{s[0], s[1], s[2], s[3], k[0], k[1], o[1], o[2], pad_top, pad_left, stride};
  if (stride != 1 && stride != 2) return ffi::Error::InvalidArgument("stride must be 1 or 2");
  if (x.element_type() == ffi::F32)
    RunForward<float>(pool, p, level, x, kernel, out);
  else if (x.element_type() == ffi::BF16)
    RunForward<BFloat16>(pool, p, level, x, kernel, out);
  else
    return ffi::Error::InvalidArgument("dtype must be float32 or bfloat16");
  return ffi::Error::Success();
}

// x (B, H, W, C), grad (B, H', W', C) -> (B, kh, kw, C) float32, the kernel's gradient of each image; stride 1
ffi::Error DepthwiseKernelGradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer grad,
                                   ffi::Result<ffi::AnyBuffer> out, int64_t pad_top, int64_t pad_left, int64_t level) {
  const auto s = x.dimensions(), g = grad.dimensions(), o = out->dimensions();
  const Problem p{s[0], s[1], s[2], s[3], o[1], o[2], g[1], g[2], pad_top, pad_left, 1};
  if (x.element_type() == ffi::F32)
    RunBackward<float>(pool, p, level, x, grad, out);
  else if (x.element_type() == ffi::BF16)
    RunBackward<BFloat16>(pool, p, level, x, grad, out);
  else
    return ffi::Error::InvalidArgument("dtype must be float32 or bfloat16");
  return ffi::Error::Success();
}

}  // namespace dcls

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_depthwise, dcls::Depthwise,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("pad_top")
                                  .Attr<int64_t>("pad_left")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("level"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_depthwise_kernel_gradient, dcls::DepthwiseKernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("pad_top")
                                  .Attr<int64_t>("pad_left")
                                  .Attr<int64_t>("level"));
