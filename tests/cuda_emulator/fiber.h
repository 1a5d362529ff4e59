// A function with a stack of its own, entered and left by hand.
#pragma once

#include <cstddef>
#include <functional>

namespace paged_stream::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // What the next enter() begins with; a function that is under way is forgotten.
  void start(std::function<void()> function);
  // Runs it until it leaves or returns.
  void enter();
  void leave();

 private:
  static void main_of(Fiber* fiber);

  std::function<void()> function_;
  char* stack_;
  void* pointer_ = nullptr;  // of the stack, while the fiber does not run
  void* outside_ = nullptr;
  const void* outside_stack_ = nullptr;
  size_t outside_size_ = 0;
};

}  // namespace paged_stream::emulator
