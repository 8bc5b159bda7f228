// Depthwise convolution on a GPU: channels-last images, float or bfloat16, sums in float.
//
// One thread has V neighbouring channels of a tile of outputs, all of it in registers; neighbouring threads have
// neighbouring channels, so that a warp reads whole lines. A row of the image is read once for all rows of the tile, and
// each cell of the kernel once for a row of the tile: the first-level cache then keeps up with the arithmetic.
//
// Compiled where it runs, with every size a constant: see cuda.py, which lists the definitions. Nothing here asks for
// more than C++, and tests compile it for the CPU.

#ifdef BFLOAT16
struct Number {
  unsigned short bits;
};
__device__ inline float Value(Number number) { return __uint_as_float(unsigned(number.bits) << 16); }
__device__ inline Number Rounded(float value) {  // to the nearest, ties to even
  const unsigned bits = __float_as_uint(value);
  const unsigned nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {static_cast<unsigned short>(value == value ? nearest : 0x7fc0)};
}
#else
using Number = float;
__device__ inline float Value(Number number) { return number; }
__device__ inline Number Rounded(float value) { return value; }
#endif

constexpr int SPAN_W = (TW - 1) * STRIDE + KERNEL_W;  // columns of the image that a row of a tile meets

struct alignas(sizeof(Number) * V) Channels {
  Number of[V];
};

struct alignas(sizeof(float) * V) Floats {
  float of[V];
};

__device__ inline Floats Load(const Number* address) {
  const Channels loaded = *reinterpret_cast<const Channels*>(address);
  Floats values;
#pragma unroll
  for (int v = 0; v < V; ++v) values.of[v] = Value(loaded.of[v]);
  return values;
}

// The image's columns that a row of a tile meets; zeros beyond the image.
__device__ inline void LoadRow(const Number* row, int first, Floats (&columns)[SPAN_W]) {
  row += long(first) * CHANNELS;
  if (first >= 0 && first + SPAN_W <= WIDTH) {
#pragma unroll
    for (int j = 0; j < SPAN_W; ++j) columns[j] = Load(row + j * CHANNELS);
  } else {
#pragma unroll
    for (int j = 0; j < SPAN_W; ++j)
      columns[j] = first + j >= 0 && first + j < WIDTH ? Load(row + j * CHANNELS) : Floats{};
  }
}

#ifndef SPLITS

// x (BATCH, HEIGHT, WIDTH, CHANNELS), kernel (KERNEL_H, KERNEL_W, CHANNELS) -> y (BATCH, OUT_H, OUT_W, CHANNELS)
extern "C" __global__ void __launch_bounds__(THREADS) run(const Number* x, const float* kernel, Number* y) {
  constexpr int tiles_w = (OUT_W + TW - 1) / TW, tiles_h = (OUT_H + TH - 1) / TH, groups = CHANNELS / V;
  const long item = long(blockIdx.x) * THREADS + threadIdx.x;
  if (item >= long(BATCH) * tiles_h * tiles_w * groups) return;
  const int channel = item % groups * V;
  const int out_w = tiles_w == 1 ? 0 : int(item / groups % tiles_w) * TW;
  const int out_h = int(item / groups / tiles_w % tiles_h) * TH;
  const long image = item / groups / tiles_w / tiles_h;
  x += image * HEIGHT * WIDTH * CHANNELS + channel;
  y += image * OUT_H * OUT_W * CHANNELS + channel;
  kernel += channel;

  Floats sums[TH][TW] = {};
  for (int i = 0; i < (TH - 1) * STRIDE + KERNEL_H; ++i) {
    const int row = out_h * STRIDE - PAD_TOP + i;
    if (row < 0 || row >= HEIGHT) continue;
    Floats columns[SPAN_W];
    LoadRow(x + long(row) * WIDTH * CHANNELS, out_w * STRIDE - PAD_LEFT, columns);
#pragma unroll
    for (int h = 0; h < TH; ++h) {
      const int a = i - h * STRIDE;
      if (TH > 1 && (a < 0 || a >= KERNEL_H)) continue;
#pragma unroll
      for (int b = 0; b < KERNEL_W; ++b) {
        const Floats cell = *reinterpret_cast<const Floats*>(kernel + (a * KERNEL_W + b) * CHANNELS);
#pragma unroll
        for (int w = 0; w < TW; ++w)
#pragma unroll
          for (int v = 0; v < V; ++v) sums[h][w].of[v] += columns[w * STRIDE + b].of[v] * cell.of[v];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < TH; ++h)
#pragma unroll
    for (int w = 0; w < TW; ++w)
      if (out_h + h < OUT_H && out_w + w < OUT_W) {
        Channels result;
#pragma unroll
        for (int v = 0; v < V; ++v) result.of[v] = Rounded(sums[h][w].of[v]);
        *reinterpret_cast<Channels*>(y + ((out_h + h) * OUT_W + out_w + w) * CHANNELS) = result;
      }
}

#else

// x (BATCH, HEIGHT, WIDTH, CHANNELS), its convolution's gradient (BATCH, OUT_H, OUT_W, CHANNELS)
// -> partial gradients to the kernel (SPLITS, KERNEL_H, KERNEL_W, CHANNELS), each of some rows of the batch
extern "C" __global__ void __launch_bounds__(THREADS) run(const Number* x, const Number* gradient, float* partial) {
  constexpr int groups = CHANNELS / V;
  constexpr long rows = long(BATCH) * OUT_H, share = (rows + SPLITS - 1) / SPLITS;
  const long item = long(blockIdx.x) * THREADS + threadIdx.x;
  if (item >= long(SPLITS) * KERNEL_H * groups) return;
  const int channel = item % groups * V;
  const int a = item / groups % KERNEL_H;
  const long split = item / groups / KERNEL_H;

  Floats sums[KERNEL_W] = {};
  const long end = (split + 1) * share < rows ? (split + 1) * share : rows;
  for (long n = split * share; n < end; ++n) {
    const int row = int(n % OUT_H) * STRIDE + a - PAD_TOP;
    if (row < 0 || row >= HEIGHT) continue;
    const Number* image_row = x + ((n / OUT_H) * HEIGHT + row) * WIDTH * CHANNELS + channel;
    const Number* gradient_row = gradient + n * OUT_W * CHANNELS + channel;
    for (int out_w = 0; out_w < OUT_W; out_w += TW) {
      Floats columns[SPAN_W];
      LoadRow(image_row, out_w * STRIDE - PAD_LEFT, columns);
#pragma unroll
      for (int w = 0; w < TW; ++w) {
        const Floats slope = out_w + w < OUT_W ? Load(gradient_row + long(out_w + w) * CHANNELS) : Floats{};
#pragma unroll
        for (int b = 0; b < KERNEL_W; ++b)
#pragma unroll
          for (int v = 0; v < V; ++v) sums[b].of[v] += columns[w * STRIDE + b].of[v] * slope.of[v];
      }
    }
  }
  partial += ((split * KERNEL_H + a) * KERNEL_W) * CHANNELS + channel;
#pragma unroll
  for (int b = 0; b < KERNEL_W; ++b) *reinterpret_cast<Floats*>(partial + b * CHANNELS) = sums[b];
}

#endif
