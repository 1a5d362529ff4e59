#include "threads/worker_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace paged_stream {
namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// An idle worker spins for as long as the serial parts of a step take.
constexpr microseconds kWorkerSpin{50};
// A caller spins for the last items for about as long as one takes.
constexpr microseconds kCallerSpin{20};
constexpr int kPausesPerLook = 16;  // between two looks at the clock, about a microsecond

// How long callers work alone after a helper lost its processor. Doubles, up to the longest, when
// it happens again within kRelapse.
constexpr milliseconds kShortestSolitude{1}, kLongestSolitude{128}, kRelapse{20};

constexpr int kMaxSections = 32;   // concurrent callers; any more work alone
constexpr int kMaxWorkers = 1023;  // fits kHelpers
constexpr int kWakes = 2;          // by each thread that enters a section, so the number grows fast
constexpr size_t kLine = 128;      // bytes that processors fetch together

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls ready() until it returns true, for about `limit`.
template <class Ready>
bool spin(microseconds limit, const Ready& ready) {
  const Time end = Clock::now() + limit;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return true;
      pause();
    }
    sched_yield();  // lets a caller or helper waiting for this processor run
  } while (Clock::now() < end);
  return false;
}

// Returns how often this thread has been preempted.
long num_losses() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nivcsw;
}

// The period in which callers work alone.
class Solitude {
 public:
  bool lasts(Time now) const { return now.time_since_epoch().count() < until_; }

  void begin(Time now) {
    const int64_t at = now.time_since_epoch().count();
    const bool again = at - until_ < Clock::duration(kRelapse).count();
    constexpr int64_t shortest = Clock::duration(kShortestSolitude).count();
    constexpr int64_t longest = Clock::duration(kLongestSolitude).count();
    // Concurrent threads may overwrite each other's length; either value will do.
    length_ = again ? std::min(2 * length_, longest) : shortest;
    until_ = at + length_;
  }

 private:
  std::atomic<int64_t> until_{0}, length_{0};
};

// The work that one caller shares. `state_` says who may use the other fields: helpers between
// enter and leave, and the caller alone while there is no room and no helper.
class alignas(kLine) Section {
 public:
  // Called by the caller, who owns this section.
  void open(int64_t num_items, uint32_t max_helpers, RunItem run, const void* context) {
    num_items_ = num_items;
    max_helpers_ = max_helpers;
    run_ = run;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    state_.store(max_helpers * kRoom);
  }

  bool enter() {
    uint32_t seen = state_.load(std::memory_order_acquire);
    while (seen >= kRoom) {
      const uint32_t entered = seen - kRoom + 1;
      if (state_.compare_exchange_weak(seen, entered, std::memory_order_acquire)) return true;
    }
    return false;
  }

  // Takes items until none are left.
  void work() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < num_items_;) {
        run_(context_, i);
      }
    } catch (...) {
      if (!has_failed_.exchange(true)) error_ = std::current_exception();
      next_.store(num_items_, std::memory_order_relaxed);
    }
  }

  // Returns true if the caller was asleep and this was the last helper.
  bool leave() {
    const uint32_t seen = state_.fetch_sub(1, std::memory_order_acq_rel);
    if (seen != (kCallerSleeps | 1)) return false;
    state_.notify_one();
    return true;
  }

  // Called by the caller: admits no more helpers and waits for those inside.
  void close() {
    uint32_t seen = state_.fetch_and(kHelpers, std::memory_order_acq_rel) & kHelpers;
    if (seen == 0 || spin(kCallerSpin, [&] { return state_.load() == 0; })) return;
    seen = state_.fetch_or(kCallerSleeps) | kCallerSleeps;
    for (; (seen & kHelpers) != 0; seen = state_.load()) state_.wait(seen);
  }

  // Called by the caller after close.
  std::exception_ptr take_error() {
    if (!has_failed_.load(std::memory_order_relaxed)) return nullptr;
    has_failed_.store(false, std::memory_order_relaxed);
    return std::exchange(error_, nullptr);
  }

  uint32_t max_helpers() const { return max_helpers_; }

 private:
  static constexpr uint32_t kHelpers = (1u << 10) - 1;  // number of helpers inside
  static constexpr uint32_t kCallerSleeps = 1u << 10;
  static constexpr uint32_t kRoom = 1u << 11;  // times the number of helpers still to be admitted

  std::atomic<uint32_t> state_{0};
  uint32_t max_helpers_ = 0;
  int64_t num_items_ = 0;
  RunItem run_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> has_failed_{false};
  std::exception_ptr error_;
  alignas(kLine) std::atomic<int64_t> next_{0};
};

// Lives until the process ends, as do its threads: nothing has to be joined at exit.
class Pool {
 public:
  // Returns this process's pool. A forked child has no workers, so it creates another.
  static Pool& get() {
    Pool* pool = current_.load(std::memory_order_acquire);
    if (pool != nullptr) return *pool;
    [[maybe_unused]] static const int once =
        pthread_atfork(nullptr, nullptr, [] { current_.store(nullptr); });
    auto* const made = new Pool;
    if (current_.compare_exchange_strong(pool, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *pool;
  }

  // Returns false if callers have to work alone at present.
  bool share(int64_t num_items, int64_t num_threads, RunItem run, const void* context) {
    if (solitude_.lasts(Clock::now())) return false;
    const int index = claim();
    if (index < 0) return false;
    const int64_t most = std::min<int64_t>(num_items, num_threads) - 1;
    const auto max_helpers = static_cast<uint32_t>(std::min<int64_t>(most, kMaxWorkers));
    grow(max_helpers);
    Section& section = sections_[index];
    section.open(num_items, max_helpers, run, context);
    wake(max_helpers);
    section.work();
    section.close();
    const std::exception_ptr error = section.take_error();
    in_use_.fetch_and(~(1u << index), std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  struct alignas(kLine) Worker {
    std::atomic<uint32_t> is_asleep{0};
  };

  // Returns the index of a free section, or -1 if there is none.
  int claim() {
    uint32_t used = in_use_.load(std::memory_order_relaxed);
    while (used != ~0u) {
      const int index = std::countr_one(used);
      if (in_use_.compare_exchange_weak(used, used | 1u << index, std::memory_order_acquire)) {
        return index;
      }
    }
    return -1;
  }

  void grow(uint32_t wanted) {
    if (num_workers_.load(std::memory_order_relaxed) >= std::min(wanted, most_workers_.load()))
      return;
    const std::lock_guard lock(growing_);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
    uint32_t count = num_workers_.load(std::memory_order_relaxed);
    try {
      for (; count < wanted; ++count) {
        std::thread([this, &self = workers_[count]] { serve(self); }).detach();
      }
    } catch (const std::exception&) {
      most_workers_ = count;  // the system allows no more threads, or has no memory for one
    }
    num_workers_.store(count, std::memory_order_relaxed);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Wakes up to kWakes workers, unless `wanted` workers are awake.
  void wake(uint32_t wanted) {
    const uint32_t asleep = num_asleep_.load();
    const uint32_t count = num_workers_.load(std::memory_order_relaxed);
    if (asleep == 0 || count >= wanted + asleep) return;
    int left = kWakes;
    for (uint32_t i = 0; i < count && left > 0; ++i) {
      if (rouse(workers_[i])) {
        workers_[i].is_asleep.notify_one();
        --left;
      }
    }
  }

  bool rouse(Worker& worker) {
    if (worker.is_asleep.load(std::memory_order_relaxed) == 0) return false;
    if (worker.is_asleep.exchange(0) == 0) return false;
    num_asleep_.fetch_sub(1);
    return true;
  }

  [[noreturn]] void serve(Worker& self) {
    long losses = num_losses();
    const auto helped = [&] { return help(losses); };
    for (;;) {
      if (spin(kWorkerSpin, helped)) continue;
      self.is_asleep.store(1, std::memory_order_relaxed);
      num_asleep_.fetch_add(1);
      // A caller that opened a section before that line did not wake this worker.
      if (help(losses)) {
        rouse(self);
      } else {
        self.is_asleep.wait(1);
      }
    }
  }

  // Works on a section that has room; returns false if there is none.
  bool help(long& losses) {
    for (uint32_t used = in_use_.load(); used != 0; used &= used - 1) {
      Section& section = sections_[std::countr_zero(used)];
      if (!section.enter()) continue;
      wake(section.max_helpers());
      section.work();
      if (section.leave()) {
        // The caller slept: either the item was long, or this thread was preempted while it had it.
        const long before = std::exchange(losses, num_losses());
        if (losses != before) solitude_.begin(Clock::now());
      }
      return true;
    }
    return false;
  }

  static inline std::atomic<Pool*> current_{nullptr};

  Section sections_[kMaxSections];
  alignas(kLine) std::atomic<uint32_t> in_use_{0};  // one bit per section
  alignas(kLine) std::atomic<uint32_t> num_asleep_{0};
  std::atomic<uint32_t> num_workers_{0};
  Solitude solitude_;
  std::mutex growing_;
  std::atomic<uint32_t> most_workers_{kMaxWorkers};
  Worker workers_[kMaxWorkers];
};

}  // namespace

void share_items(int64_t num_items, int64_t num_threads, RunItem run, const void* context) {
  if (Pool::get().share(num_items, num_threads, run, context)) return;
  for (int64_t i = 0; i < num_items; ++i) run(context, i);
}

}  // namespace paged_stream
