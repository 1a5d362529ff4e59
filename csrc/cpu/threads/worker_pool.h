// Threads that share the items of one section of work with whoever calls; knows nothing of torch.
//
// Why not OpenMP: its sections end at a barrier, where threads spin until the last of the team has
// come. One that has lost its processor to another process holds up all of them, and they,
// spinning, keep it from getting another processor: beside one busy process a step took twenty
// times as long.
//
// Here items are handed out one by one to whoever is free, the caller among them. It waits only for
// items that somebody has begun, never for a helper that has not come; and all who wait spin for
// some microseconds, so that the sections of a step follow each other without system calls, and
// then sleep, so that the processor is free for others. Once a helper has lost its processor with
// an item in hand, callers work alone for a while and then try again.
#pragma once

#include <cstdint>

namespace paged_stream {

using RunItem = void (*)(const void* context, int64_t item);

// Calls run(context, item) for every item in [0, num_items), on the calling thread and at most
// num_threads - 1 others, and returns when all are done. Any number of threads may call at once,
// and so may items. The first exception of an item is thrown to the caller when nobody is at work
// any more; items that nobody had begun are dropped then.
void share_items(int64_t num_items, int64_t num_threads, RunItem run, const void* context);

template <class Run>
void share_items(int64_t num_items, int64_t num_threads, const Run& run) {
  if (num_threads <= 1 || num_items <= 1) {
    for (int64_t i = 0; i < num_items; ++i) run(i);
    return;
  }
  const RunItem call = [](const void* context, int64_t item) {
    (*static_cast<const Run*>(context))(item);
  };
  share_items(num_items, num_threads, call, &run);
}

}  // namespace paged_stream
