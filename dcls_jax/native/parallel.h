// A loop over independent items on XLA's own threads, and memory for the work.

#ifndef DCLS_JAX_PARALLEL_H_
#define DCLS_JAX_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace dcls {

// Runs work(0) to work(items - 1), each once, on the caller's thread and whichever of the pool's are free, and returns
// when all are done. A pool thread that starts late finds nothing to do and touches nothing of the caller's.
inline void ParallelFor(xla::ffi::ThreadPool& pool, long items, const std::function<void(long)>& work) {
  struct Shared {
    std::atomic<long> next{0};
    std::atomic<long> done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  auto drain = [shared, items, &work] {
    for (long item; (item = shared->next.fetch_add(1)) < items;) {
      work(item);
      if (shared->done.fetch_add(1) + 1 == items) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->finished.notify_all();
      }
    }
  };
  const long helpers = std::min<long>(pool.num_threads(), items) - 1;
  for (long i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(drain));
  drain();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done.load() == items; });
}

// Memory that a thread keeps between work items, at a multiple of 64 bytes; two slots per type. By its address, as a compiler
// looks thread_local names up again in every turn of a loop.
template <typename T>
T* Scratch(int slot, long count) {
  thread_local std::vector<char> buffers[2];
  const size_t bytes = count * sizeof(T) + 64;
  if (buffers[slot].size() < bytes) buffers[slot].resize(bytes);
  const auto address = reinterpret_cast<uintptr_t>(buffers[slot].data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

}  // namespace dcls

#endif  // DCLS_JAX_PARALLEL_H_
