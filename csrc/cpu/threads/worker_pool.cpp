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
#include <system_error>
#include <thread>
#include <utility>

namespace paged_stream {
namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// A worker that finds nothing to do spins as long as the parts of a step that are not shared take.
constexpr microseconds kWorkerSpin{50};
// A caller spins for the last items about as long as one takes.
constexpr microseconds kCallerSpin{20};
constexpr int kPausesPerLook = 16;  // between two looks at the clock, about a microsecond

// How long callers work alone after a helper lost its processor: longer each time that this
// happens again soon.
constexpr milliseconds kShortestSolitude{1}, kLongestSolitude{128}, kRelapse{20};

constexpr int kMaxSections = 32;   // callers at one time; more work alone
constexpr int kMaxWorkers = 1023;  // fits kHelpers
constexpr int kWakes = 2;          // by each who comes to a section, so that many wake in few steps
constexpr size_t kLine = 128;      // bytes that processors fetch together

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls ready() until it is true, for about `limit`.
template <class Ready>
bool spin(microseconds limit, const Ready& ready) {
  const Time end = Clock::now() + limit;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return true;
      pause();
    }
    sched_yield();  // to a caller or helper that waits for this very processor
  } while (Clock::now() < end);
  return false;
}

// How often others have taken the processor from this thread.
long num_losses() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nivcsw;
}

// The time in which callers work alone.
class Solitude {
 public:
  bool lasts(Time now) const { return now.time_since_epoch().count() < until_; }

  void begin(Time now) {
    const int64_t at = now.time_since_epoch().count();
    const bool again = at - until_ < Clock::duration(kRelapse).count();
    constexpr int64_t shortest = Clock::duration(kShortestSolitude).count();
    constexpr int64_t longest = Clock::duration(kLongestSolitude).count();
    // Threads that are here together may take each other's step: any of them is as good.
    length_ = again ? std::min(2 * length_, longest) : shortest;
    until_ = at + length_;
  }

 private:
  std::atomic<int64_t> until_{0}, length_{0};
};

// What one caller shares. `state` says who may use the rest: helpers between enter and leave, the
// caller alone while there is neither room nor a helper.
class alignas(kLine) Section {
 public:
  // By the caller, who has this section to itself.
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

  // Takes items until there are no more.
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

  // True if the caller had gone to sleep over this helper, the last one.
  bool leave() {
    const uint32_t seen = state_.fetch_sub(1, std::memory_order_acq_rel);
    if (seen != (kCallerSleeps | 1)) return false;
    state_.notify_one();
    return true;
  }

  // By the caller: lets nobody in any more and waits for those inside.
  void close() {
    uint32_t seen = state_.fetch_and(kHelpers, std::memory_order_acq_rel) & kHelpers;
    if (seen == 0 || spin(kCallerSpin, [&] { return state_.load() == 0; })) return;
    seen = state_.fetch_or(kCallerSleeps) | kCallerSleeps;
    for (; (seen & kHelpers) != 0; seen = state_.load()) state_.wait(seen);
  }

  // By the caller, when it is closed.
  std::exception_ptr take_error() {
    if (!has_failed_.load(std::memory_order_relaxed)) return nullptr;
    has_failed_.store(false, std::memory_order_relaxed);
    return std::exchange(error_, nullptr);
  }

  uint32_t max_helpers() const { return max_helpers_; }

 private:
  static constexpr uint32_t kHelpers = (1u << 10) - 1;  // how many are inside
  static constexpr uint32_t kCallerSleeps = 1u << 10;
  static constexpr uint32_t kRoom = 1u << 11;  // times how many more may come

  std::atomic<uint32_t> state_{0};
  uint32_t max_helpers_ = 0;
  int64_t num_items_ = 0;
  RunItem run_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> has_failed_{false};
  std::exception_ptr error_;
  alignas(kLine) std::atomic<int64_t> next_{0};
};

// Lives until the process ends, and so do its threads: nothing has to be joined at exit.
class Pool {
 public:
  // The process's own: a forked child, in which no worker lives on, makes another.
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

  // False if callers have to work alone now.
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

  // A section that nobody has, -1 if there is none.
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
    } catch (const std::system_error&) {
      most_workers_ = count;  // the system gives no more
    }
    num_workers_.store(count, std::memory_order_relaxed);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Wakes some sleepers unless so many are awake already.
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
      // A caller who came before that has woken nobody.
      if (help(losses)) {
        rouse(self);
      } else {
        self.is_asleep.wait(1);
      }
    }
  }

  // Works on a section that has room, if there is one.
  bool help(long& losses) {
    for (uint32_t used = in_use_.load(); used != 0; used &= used - 1) {
      Section& section = sections_[std::countr_zero(used)];
      if (!section.enter()) continue;
      wake(section.max_helpers());
      section.work();
      if (section.leave()) {
        // Was the item long, or has it lain here while somebody else had the processor?
        const long before = std::exchange(losses, num_losses());
        if (losses != before) solitude_.begin(Clock::now());
      }
      return true;
    }
    return false;
  }

  static inline std::atomic<Pool*> current_{nullptr};

  Section sections_[kMaxSections];
  alignas(kLine) std::atomic<uint32_t> in_use_{0};  // a bit per section
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
