// Calls that come from stdin, and their answers: see emulator.py, which writes and reads them. For
// the one file of a program that has its main function.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"

namespace paged_stream::emulator {

using Bytes = std::vector<uint8_t>;

inline std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

inline void read_bytes(void* to, size_t size) {
  if (size != 0 && std::fread(to, 1, size, stdin) != size) std::exit(0);  // the tests have ended
}
template <class T>
T read() {
  T value;
  read_bytes(&value, sizeof(value));
  return value;
}
inline void write_bytes(const void* from, size_t size) {
  if (size != 0) std::fwrite(from, 1, size, stdout);
}

struct Call {
  std::string name;
  std::vector<Argument> arguments;
  std::vector<Bytes> buffers;  // one per argument; empty for arguments of other kinds

  // Reads the next call; the process ends if there is none.
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

  // Returns the function that this call runs.
  Entry entry() const {
    const auto found = entries().find(name);
    if (found == entries().end()) throw std::runtime_error("no entry is called " + name);
    return found->second;
  }
};

// Writes the buffers as the kernel left them.
inline void answer(const std::vector<Bytes>& buffers) {
  write_bytes("\1", 1);
  for (const Bytes& bytes : buffers) write_bytes(bytes.data(), bytes.size());
  std::fflush(stdout);
}

// Writes why the call failed.
inline void refuse(const std::string& message) {
  const auto size = static_cast<uint32_t>(message.size());
  write_bytes("\0", 1);
  write_bytes(&size, sizeof(size));
  write_bytes(message.data(), size);
  std::fflush(stdout);
}

const Argument& Arguments::next(Argument::Kind kind) {
  if (at_ == all_.size()) throw std::runtime_error("too few arguments");
  const Argument& argument = all_[at_++];
  const bool is_null = kind == Argument::kBuffer && argument.kind == Argument::kNothing;
  if (argument.kind == kind || is_null) return argument;
  throw std::runtime_error("argument " + std::to_string(at_ - 1) + " is of another kind");
}

Registration::Registration(const char* name, Entry entry) { entries()[name] = entry; }

}  // namespace paged_stream::emulator
