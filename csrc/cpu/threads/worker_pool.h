// Threads that share the items of one section of work with its caller. Independent of torch.
//
// Why not OpenMP: its sections end at a barrier, where threads spin until the last of the team
// arrives. A thread that has lost its processor to another process delays all the others, and their
// spinning keeps it from getting another: beside one busy process, a step took 20 times as long.
//
// Here, items are handed out one by one to whichever thread is free, including the caller. The
// caller waits only for items that a thread has begun, never for a helper that has not arrived.
// Waiting threads first spin for some microseconds, so that a step's sections follow each other
// without system calls, and then sleep, which frees the processor for others. When a helper has
// lost its processor while holding an item, callers work alone for a while before they try again.
#pragma once

#include <cstdint>

namespace paged_stream {

using RunItem = void (*)(const void* context, int64_t item);

// Calls run(context, item) for every item in [0, num_items), on the calling thread and at most
// num_threads - 1 others, and returns when all are done. Any number of threads may call this at
// once, and items may call it too. If items throw, rethrows the first exception once no item is
// running; items that had not begun by then are dropped.
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
