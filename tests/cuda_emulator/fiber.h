// A function with its own stack, which is entered and left explicitly.
#pragma once

#include <cstddef>
#include <functional>

namespace paged_stream::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Sets the function that the next enter() starts; abandons one that is still running.
  void start(std::function<void()> function);
  // Runs the function until it leaves or returns.
  void enter();
  void leave();

 private:
  static void main_of(Fiber* fiber);

  std::function<void()> function_;
  char* stack_;
  void* pointer_ = nullptr;  // the fiber's stack pointer while it is not running
  void* outside_ = nullptr;
  const void* outside_stack_ = nullptr;
  size_t outside_size_ = 0;
};

}  // namespace paged_stream::emulator
