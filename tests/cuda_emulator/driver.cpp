// The emulator's process. Runs each call under several schedules on fresh copies of its buffers,
// and returns the buffers if all schedules agree. See emulator.py.

#include "driver.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "calls.h"
#include "device.cuh"

namespace paged_stream::emulator {
namespace {

std::vector<std::unique_ptr<float[]>> scratch_memory;

// Runs the entry on copies of the buffers and returns them. Each copy is an allocation of exactly
// its size, so that an access past the end is an error.
std::vector<Bytes> run(const Call& call) {
  std::vector<Argument> args = call.arguments;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> memory;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].kind != Argument::kBuffer) continue;
    const Bytes& bytes = call.buffers[i];
    if (posix_memalign(&args[i].buffer, 256, bytes.size()) != 0) throw std::bad_alloc();
    memory.emplace_back(args[i].buffer, &std::free);
    std::copy(bytes.begin(), bytes.end(), static_cast<uint8_t*>(args[i].buffer));
  }
  Arguments of(args);
  call.entry()(of);
  scratch_memory.clear();
  std::vector<Bytes> results(args.size());
  for (size_t i = 0; i < args.size(); ++i) {
    const auto* data = static_cast<const uint8_t*>(args[i].buffer);
    results[i].assign(data, data + call.buffers[i].size());
  }
  return results;
}

struct NamedSchedule {
  Schedule schedule;
  const char* suspicion;  // reported if the results differ from the first schedule's
};
using Order = Schedule::Order;
constexpr uint64_t kNaN = Schedule::kNaN, kLarge = Schedule::kLarge, kRandom = Schedule::kRandom;
const NamedSchedule kSchedules[] = {
    {{Order::kForward, 0, kNaN}, nullptr},
    {{Order::kForward, 0, kLarge}, "the results depend on what shared memory held before"},
    {{Order::kForward, 0, kRandom}, "the results depend on what shared memory held before"},
    {{Order::kReverse, 0, kNaN}, "the results depend on the order of threads"},
    {{Order::kShuffled, 1, kNaN}, "the results depend on the order of threads"},
    {{Order::kShuffled, 2, kRandom + 1}, "the results depend on the order of threads"},
};

std::vector<Bytes> run_under_all(const Call& call) {
  std::vector<Bytes> first;
  for (const auto& [next, suspicion] : kSchedules) {
    schedule = next;
    std::vector<Bytes> results = run(call);
    if (suspicion == nullptr) {
      first = std::move(results);
    } else if (results != first) {
      throw std::runtime_error(suspicion);
    }
  }
  return first;
}

}  // namespace

float* scratch(size_t count) {
  scratch_memory.emplace_back(new float[count]);
  std::fill_n(scratch_memory.back().get(), count, NAN);
  return scratch_memory.back().get();
}

}  // namespace paged_stream::emulator

int main() {
  using namespace paged_stream::emulator;
  while (true) {
    const Call call = Call::next();
    try {
      answer(run_under_all(call));
    } catch (const std::exception& error) {
      refuse(error.what());
    }
  }
}
