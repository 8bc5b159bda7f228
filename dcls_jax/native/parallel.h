// A loop over independent items on XLA's own threads.

#ifndef DCLS_JAX_PARALLEL_H_
#define DCLS_JAX_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

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

}  // namespace dcls

#endif  // DCLS_JAX_PARALLEL_H_
