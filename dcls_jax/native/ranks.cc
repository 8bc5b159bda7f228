// Average ranks of rows of float32, ties sharing their mean, by a radix sort of the bits; and Spearman's correlation of two
// rows, whose ranks then need not leave the cache.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace dcls {

constexpr int kDigits = 3, kBits = 11, kBuckets = 1 << kBits;

struct Entry {
  uint32_t key, index;
};

// Unsigned integers in the order of the numbers; both zeros are one. Without branches, which random signs would mislead.
inline uint32_t OrderedBits(float value) {
  value += 0.0f;  // -0 becomes 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (0x80000000u | -(bits >> 31));
}

inline uint32_t Digit(uint32_t key, int digit) { return key >> (kBits * digit) & (kBuckets - 1); }

// Ranks from 1 of one row; NaN if a value is not finite.
void RankRow(const float* x, long count, float* ranks) {
  Entry *sorted = Scratch<Entry>(0, count), *other = Scratch<Entry>(1, count);
  std::array<std::array<uint32_t, kBuckets>, kDigits> places{};
  bool finite = true;
  for (long i = 0; i < count; ++i) {
    finite &= std::abs(x[i]) <= std::numeric_limits<float>::max();
    const uint32_t key = OrderedBits(x[i]);
    sorted[i] = {key, static_cast<uint32_t>(i)};
    for (int d = 0; d < kDigits; ++d) ++places[d][Digit(key, d)];
  }
  if (!finite) {
    std::fill(ranks, ranks + count, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  for (int d = 0; d < kDigits; ++d) {
    uint32_t before = 0;
    for (uint32_t& place : places[d]) before += std::exchange(place, before);
    for (long i = 0; i < count; ++i) other[places[d][Digit(sorted[i].key, d)]++] = sorted[i];
    std::swap(sorted, other);
  }
  for (long first = 0, end; first < count; first = end) {
    for (end = first + 1; end < count && sorted[end].key == sorted[first].key;) ++end;
    const float rank = 0.5f * static_cast<float>(first + 1 + end);
    for (long i = first; i < end; ++i) ranks[sorted[i].index] = rank;
  }
}

// Pearson's correlation of the ranks of two rows; NaN if a row is constant or not finite.
double Spearman(const float* a, const float* b, long count) {
  constexpr long kLanes = 8;  // enough for a compiler to find its vectors
  const float mean = 0.5f * static_cast<float>(count + 1);
  const long padded = (count + kLanes - 1) / kLanes * kLanes;
  float *ranks_a = Scratch<float>(0, padded), *ranks_b = Scratch<float>(1, padded);
  for (float* ranks : {ranks_a, ranks_b}) std::fill(ranks + count, ranks + padded, mean);
  RankRow(a, count, ranks_a);
  RankRow(b, count, ranks_b);
  std::array<double, kLanes> ab{}, aa{}, bb{};
  for (long i = 0; i < padded; i += kLanes)
    for (long lane = 0; lane < kLanes; ++lane) {
      const double x = ranks_a[i + lane] - mean, y = ranks_b[i + lane] - mean;
      ab[lane] += x * y;
      aa[lane] += x * x;
      bb[lane] += y * y;
    }
  const auto sum = [](const std::array<double, kLanes>& lanes) { return std::accumulate(lanes.begin(), lanes.end(), 0.0); };
  return sum(ab) / (std::sqrt(sum(aa)) * std::sqrt(sum(bb)));
}

// x (..., N) -> (..., N)
ffi::Error AverageRanks(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> ranks) {
  const long count = x.dimensions().back();
  const long rows = count ? static_cast<long>(x.element_count()) / count : 0;
  const float* values = x.typed_data();
  float* result = ranks->typed_data();
  ParallelFor(pool, rows, [&](long row) { RankRow(values + row * count, count, result + row * count); });
  return ffi::Error::Success();
}

// a (..., N), b (..., N) -> (...)
ffi::Error Correlations(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> a, ffi::Buffer<ffi::F32> b,
                        ffi::ResultBuffer<ffi::F32> correlations) {
  const long count = a.dimensions().back();
  const float *left = a.typed_data(), *right = b.typed_data();
  float* result = correlations->typed_data();
  ParallelFor(pool, static_cast<long>(correlations->element_count()), [&](long row) {
    result[row] = static_cast<float>(Spearman(left + row * count, right + row * count, count));
  });
  return ffi::Error::Success();
}

}  // namespace dcls

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dcls_average_ranks, dcls::AverageRanks,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(dcls_spearman, dcls::Correlations,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
