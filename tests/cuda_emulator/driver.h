// Entries that tests call by name in a process that has the emulator or a device, and their
// arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paged_stream::emulator {

struct Argument {
  enum Kind : uint8_t { kInteger, kNumber, kBuffer, kNothing };
  Kind kind;
  int64_t integer;
  double number;
  void* buffer;
};

// Reads a call's arguments one by one, in the order in which the test passed them.
class Arguments {
 public:
  explicit Arguments(const std::vector<Argument>& all) : all_(all) {}

  int64_t integer() { return next(Argument::kInteger).integer; }
  double number() { return next(Argument::kNumber).number; }
  // Returns the data of a tensor, or null for None.
  template <class T = void>
  T* buffer() {
    return static_cast<T*>(next(Argument::kBuffer).buffer);
  }

 private:
  const Argument& next(Argument::Kind kind);

  const std::vector<Argument>& all_;
  size_t at_ = 0;
};

using Entry = void (*)(Arguments&);

// Returns memory for so many floats, NaN until they are written, that lasts until the entry ends.
float* scratch(size_t count);

struct Registration {
  Registration(const char* name, Entry entry);
};

// EMULATED(name) { ... args ... } defines the function that Emulator.call("name", ...) runs.
#define EMULATED(name)                                                                             \
  static void emulated_##name(::paged_stream::emulator::Arguments& args);                          \
  static const ::paged_stream::emulator::Registration registration_##name(#name, emulated_##name); \
  static void emulated_##name([[maybe_unused]] ::paged_stream::emulator::Arguments& args)

}  // namespace paged_stream::emulator
