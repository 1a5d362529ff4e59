// The emulated device: fibers, barriers and asynchronous copies.

#include "device.cuh"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fiber.h"

namespace paged_stream::emulator {
namespace {

constexpr size_t kMaxSharedBytes = 227 * 1024;  // per thread block
constexpr int kMaxThreads = 1024;

// Threads that wait for each other: those of a warp or of a thread block.
struct Group {
  size_t size = 0, arrived = 0;
  const char* what = nullptr;
  Where where;
  std::vector<void*> payloads;
};

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};

enum class State { kReady, kWaiting, kDone };

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  dim3 index;
  Group* group = nullptr;  // that it waits for
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
};

std::string describe(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

// One launch. Its thread blocks run one after another on the same fibers.
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel)
      : block_(block), num_threads_(block.x * block.y * block.z), kernel_(kernel), random_(0) {
    validate(grid, shared_bytes);
    gridDim = grid;
    blockDim = block;
    random_.seed(schedule.seed);
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes) != 0) throw std::bad_alloc();
    shared_.reset(static_cast<uint8_t*>(memory));
    shared_bytes_ = shared_bytes;
  }

  void run() {
    const int64_t count = int64_t{gridDim.x} * gridDim.y * gridDim.z;
    for (const int64_t i : order(count)) {
      blockIdx = {static_cast<unsigned>(i % gridDim.x),
                  static_cast<unsigned>(i / gridDim.x % gridDim.y),
                  static_cast<unsigned>(i / gridDim.x / gridDim.y)};
      poison(shared_.get(), shared_bytes_);
      run_block();
    }
  }

  void meet(Group& group, const char* what, void* payload, void (*complete)(void* const*),
            const Where& where) {
    if (group.arrived == 0) {
      group.what = what;
      group.where = where;
    } else if (!same(group.where, where)) {
      fail("threads diverge: others of its warp or block are at " + std::string(group.what) + " (" +
               describe(group.where) + ")",
           what, where);
    }
    group.payloads[member(group)] = payload;
    if (++group.arrived < group.size) {
      current_->state = State::kWaiting;
      current_->group = &group;
      current_->fiber.leave();
      return;
    }
    if (complete != nullptr) complete(group.payloads.data());
    group.arrived = 0;
    Thread* const first = pool().data() + (&group == &all_ ? 0 : rank() / 32 * 32);
    for (Thread* thread = first; thread < first + group.size; ++thread) {
      thread->state = State::kReady;
    }
  }

  [[noreturn]] void fail(const std::string& message, const char* what, const Where& where) {
    error_ = "thread " + std::to_string(rank()) + " at " + what + " (" + describe(where) +
             "): " + message;
    current_->state = State::kDone;
    while (true) current_->fiber.leave();
  }

  void poison(void* memory, size_t bytes) {
    auto* at = static_cast<uint8_t*>(memory);
    if (schedule.poison < Schedule::kRandom) {
      std::fill(at, at + bytes, schedule.poison == Schedule::kNaN ? uint8_t{0xff} : uint8_t{0x7f});
    } else {
      std::minstd_rand random(static_cast<unsigned>(schedule.poison));
      for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<uint8_t>(random() >> 8);
    }
  }

  Thread& current() { return *current_; }
  Group& warp() { return warps_[rank() / 32]; }
  Group& block() { return all_; }
  int rank() const { return static_cast<int>(current_ - pool().data()); }
  uint8_t* shared() { return shared_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { free(p); }
  };

  // Stacks are reused by later launches.
  static std::vector<Thread>& pool() {
    static std::vector<Thread> all(kMaxThreads);
    return all;
  }
  struct Range {
    Thread *first, *last;
    Thread* begin() const { return first; }
    Thread* end() const { return last; }
  };
  Range threads() const { return {pool().data(), pool().data() + num_threads_}; }

  size_t member(const Group& group) const { return &group == &all_ ? rank() : rank() % 32; }

  void validate(dim3 grid, size_t shared_bytes) const {
    const auto check = [](bool condition, const char* what) {
      if (!condition) throw std::runtime_error(std::string("launch refused: ") + what);
    };
    check(num_threads_ >= 1 && num_threads_ <= kMaxThreads, "1 to 1024 threads make a block");
    check(num_threads_ % 32 == 0, "a block must be of whole warps");
    check(grid.x >= 1 && grid.y >= 1 && grid.z >= 1, "the grid is empty");
    check(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, "the grid is too large");
    check(shared_bytes <= kMaxSharedBytes, "a block has at most 227 KiB of shared memory");
  }

  std::vector<int64_t> order(int64_t count) {
    std::vector<int64_t> all(count);
    std::iota(all.begin(), all.end(), 0);
    if (schedule.order == Schedule::Order::kReverse) std::reverse(all.begin(), all.end());
    if (schedule.order == Schedule::Order::kShuffled) {
      std::shuffle(all.begin(), all.end(), random_);
    }
    return all;
  }

  void run_block() {
    all_ = Group{static_cast<size_t>(num_threads_), 0, nullptr, {}, {}};
    all_.payloads.resize(num_threads_);
    warps_.assign(num_threads_ / 32, Group{32, 0, nullptr, {}, std::vector<void*>(32)});
    unsigned rank = 0;
    for (Thread& thread : threads()) {
      thread.state = State::kReady;
      thread.index = {rank % block_.x, rank / block_.x % block_.y, rank / block_.x / block_.y};
      thread.open_copies.clear();
      thread.copy_groups.clear();
      thread.fiber.start([this] {
        kernel_();
        current_->state = State::kDone;
      });
      ++rank;
    }
    while (sweep()) {
    }
    for (const Thread& thread : threads()) {
      if (thread.state != State::kDone) throw std::runtime_error(describe_wait(thread));
    }
  }

  // Resumes every thread that can run; returns false if there is none.
  bool sweep() {
    bool any = false;
    for (const int64_t i : order(num_threads_)) {
      Thread& thread = pool()[i];
      if (thread.state != State::kReady) continue;
      any = true;
      current_ = &thread;
      threadIdx = thread.index;
      thread.fiber.enter();
      if (!error_.empty()) throw std::runtime_error(error_);
    }
    return any;
  }

  std::string describe_wait(const Thread& thread) const {
    std::ostringstream text;
    text << "threads diverge: thread " << &thread - pool().data() << " waits at "
         << thread.group->what << " (" << describe(thread.group->where) << ") for ";
    if (thread.group->size == 32) {
      text << "lanes of its warp";
    } else {
      text << "threads of its block";
    }
    text << " that never come: " << thread.group->arrived << " of " << thread.group->size
         << " are there";
    return text.str();
  }

  dim3 block_;
  int num_threads_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  std::unique_ptr<uint8_t, Free> shared_;
  size_t shared_bytes_ = 0;
  Group all_;
  std::vector<Group> warps_;
  Thread* current_ = nullptr;
  std::string error_;
};

Launch* running = nullptr;

void apply(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memset(copy.shared, 0, 16);
    if (copy.bytes != 0) std::memcpy(copy.shared, copy.global, copy.bytes);
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  Launch launch(grid, block, shared_bytes, kernel);
  running = &launch;
  launch.run();
  running = nullptr;
}

void fail(const char* what, const Where& where) { running->fail("refused", what, where); }

void meet_warp(const char* what, void* payload, void (*complete)(void* const*),
               const Where& where) {
  running->meet(running->warp(), what, payload, complete, where);
}
void meet_block(const char* what, const Where& where) {
  running->meet(running->block(), what, nullptr, nullptr, where);
}

uint8_t* shared_memory() { return running->shared(); }
int lane() { return running->rank() % 32; }

void start_copy_16(void* shared, const void* global, int bytes, const Where& where) {
  require(bytes >= 0 && bytes <= 16, "copy of more than 16 bytes", where);
  require(reinterpret_cast<uintptr_t>(shared) % 16 == 0, "copy to a misaligned address", where);
  require(reinterpret_cast<uintptr_t>(global) % 16 == 0, "copy from a misaligned address", where);
  running->poison(shared, 16);
  running->current().open_copies.push_back({shared, global, bytes});
}
void end_copy_group() {
  Thread& thread = running->current();
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}
void finish_copies(size_t groups_left) {
  auto& groups = running->current().copy_groups;
  for (; groups.size() > groups_left; groups.pop_front()) apply(groups.front());
}

void load_matrices(const char* what, uint32_t (&r)[4], const void* row, bool transposed,
                   const Where& where) {
  require(reinterpret_cast<uintptr_t>(row) % 16 == 0, "load_matrix from a misaligned row", where);
  MatrixRows mine{static_cast<const uint16_t*>(row), r};
  const auto complete = transposed ? [](void* const* lanes) {
    for (int i = 0; i < 128; ++i) {
      const int lane = i % 32, matrix = i / 32;
      const auto at = [&](int row) {
        return uint32_t{static_cast<MatrixRows*>(lanes[matrix * 8 + row])->row[lane / 4]};
      };
      const int first = 2 * (lane % 4);
      static_cast<MatrixRows*>(lanes[lane])->r[matrix] = at(first) | at(first + 1) << 16;
    }
  } : [](void* const* lanes) {
    for (int i = 0; i < 128; ++i) {
      const int lane = i % 32, matrix = i / 32;
      const uint16_t* from = static_cast<MatrixRows*>(lanes[matrix * 8 + lane / 4])->row;
      std::memcpy(&static_cast<MatrixRows*>(lanes[lane])->r[matrix], from + 2 * (lane % 4), 4);
    }
  };
  meet_warp(what, &mine, complete, where);
}

void multiply(void* const* lanes, float (*widen)(uint16_t)) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<MatrixProduct*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = g + (i / 2 % 2) * 8, column = 2 * t + i % 2 + i / 4 * 8;
      a[row][column] = widen(static_cast<uint16_t>(mine->a[i / 2] >> (i % 2 * 16)));
    }
    for (int i = 0; i < 4; ++i) {
      b[2 * t + i % 2 + i / 2 * 8][g] =
          widen(static_cast<uint16_t>(mine->b[i / 2] >> (i % 2 * 16)));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<MatrixProduct*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      double sum = d[i];
      for (int k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][column];
      d[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace paged_stream::emulator
