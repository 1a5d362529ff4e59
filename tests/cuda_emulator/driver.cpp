// The emulator's process. Reads calls from stdin, runs each under several schedules on fresh copies
// of its buffers, and returns the buffers if all schedules agree. See emulator.py.

#include "driver.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace paged_stream::emulator {
namespace {

std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

void read_bytes(void* to, size_t size) {
  if (size != 0 && std::fread(to, 1, size, stdin) != size) std::exit(0);  // the tests have ended
}
template <class T>
T read() {
  T value;
  read_bytes(&value, sizeof(value));
  return value;
}
void write_bytes(const void* from, size_t size) {
  if (size != 0) std::fwrite(from, 1, size, stdout);
}

using Bytes = std::vector<uint8_t>;

struct Call {
  std::string name;
  std::vector<Argument> arguments;
  std::vector<Bytes> buffers;  // one per argument; empty for arguments of other kinds

  static Call next() {
    Call call;
    call.name.resize(read<uint32_t>());
    read_bytes(call.name.data(), call.name.size());
    call.arguments.resize(read<uint32_t>());
    for (Argument& argument : call.arguments) {
      argument = {read<Argument::Kind>(), 0, 0, nullptr};
      Bytes& bytes = call.buffers.emplace_back();
      if (argument.kind == Argument::kInteger) argument.integer = read<int64_t>();
      if (argument.kind == Argument::kNumber) argument.number = read<double>();
      if (argument.kind == Argument::kBuffer) {
        bytes.resize(read<uint64_t>());
        read_bytes(bytes.data(), bytes.size());
      }
    }
    return call;
  }

  // Runs the entry on copies of the buffers and returns them. Each copy is an allocation of exactly
  // its size, so that an access past the end is an error.
  std::vector<Bytes> run(Entry entry) const {
    std::vector<Argument> args = arguments;
    std::vector<std::unique_ptr<void, decltype(&std::free)>> memory;
    for (size_t i = 0; i < args.size(); ++i) {
      if (args[i].kind != Argument::kBuffer) continue;
      if (posix_memalign(&args[i].buffer, 256, buffers[i].size()) != 0) throw std::bad_alloc();
      memory.emplace_back(args[i].buffer, &std::free);
      std::copy(buffers[i].begin(), buffers[i].end(), static_cast<uint8_t*>(args[i].buffer));
    }
    Arguments of(args);
    entry(of);
    std::vector<Bytes> results(args.size());
    for (size_t i = 0; i < args.size(); ++i) {
      const auto* data = static_cast<const uint8_t*>(args[i].buffer);
      results[i].assign(data, data + buffers[i].size());
    }
    return results;
  }
};

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

std::vector<Bytes> answer(const Call& call) {
  const auto found = entries().find(call.name);
  if (found == entries().end()) throw std::runtime_error("no entry is called " + call.name);
  std::vector<Bytes> first;
  for (const auto& [next, suspicion] : kSchedules) {
    schedule = next;
    std::vector<Bytes> results = call.run(found->second);
    if (suspicion == nullptr) {
      first = std::move(results);
    } else if (results != first) {
      throw std::runtime_error(suspicion);
    }
  }
  return first;
}

}  // namespace

const Argument& Arguments::next(Argument::Kind kind) {
  if (at_ == all_.size()) throw std::runtime_error("too few arguments");
  const Argument& argument = all_[at_++];
  const bool is_null = kind == Argument::kBuffer && argument.kind == Argument::kNothing;
  if (argument.kind == kind || is_null) return argument;
  throw std::runtime_error("argument " + std::to_string(at_ - 1) + " is of another kind");
}

Registration::Registration(const char* name, Entry entry) { entries()[name] = entry; }

}  // namespace paged_stream::emulator

int main() {
  using namespace paged_stream::emulator;
  while (true) {
    const Call call = Call::next();
    try {
      const auto results = answer(call);
      write_bytes("\1", 1);
      for (const auto& bytes : results) write_bytes(bytes.data(), bytes.size());
    } catch (const std::exception& error) {
      const std::string message = error.what();
      const auto size = static_cast<uint32_t>(message.size());
      write_bytes("\0", 1);
      write_bytes(&size, sizeof(size));
      write_bytes(message.data(), size);
    }
    std::fflush(stdout);
  }
}
