// Switches stacks. On x86-64 this saves swapcontext's system call: the registers to keep are known.

#include "fiber.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace paged_stream::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 64 * 1024;

}  // namespace

#if defined(__x86_64__)

// Saves the stack pointer to *save and continues at `load`.
extern "C" void paged_stream_switch_stack(void** save, void* load);
extern "C" void paged_stream_begin_fiber();
asm(R"(
.text
.globl paged_stream_switch_stack
paged_stream_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.globl paged_stream_begin_fiber
paged_stream_begin_fiber:
  movq %rbx, %rdi
  call *%r12
  ud2
)");

namespace {

void* first_frame(char* stack, void (*function)(Fiber*), Fiber* fiber) {
  auto* top = reinterpret_cast<void**>(stack + kGuardBytes + kStackBytes) - 9;
  top[0] = top[1] = top[2] = top[5] = nullptr;  // r15, r14, r13, rbp
  top[3] = reinterpret_cast<void*>(function);   // r12
  top[4] = fiber;                               // rbx
  top[6] = reinterpret_cast<void*>(&paged_stream_begin_fiber);
  return top;
}
void switch_stack(void** save, void* load) { paged_stream_switch_stack(save, load); }

}  // namespace

#else

namespace {

// The context is at the lower end of the fiber's stack.
void* first_frame(char* stack, void (*function)(Fiber*), Fiber* fiber) {
  auto* context = new (stack + kGuardBytes) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack + kGuardBytes + sizeof(ucontext_t);
  context->uc_stack.ss_size = kStackBytes - sizeof(ucontext_t);
  const auto bits = reinterpret_cast<uintptr_t>(fiber);
  static void (*entry)(Fiber*) = function;
  const auto begin = [](unsigned low, unsigned high) {
    entry(reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low));
  };
  makecontext(context,
              reinterpret_cast<void (*)()>(static_cast<void (*)(unsigned, unsigned)>(begin)), 2,
              static_cast<unsigned>(bits), static_cast<unsigned>(bits >> 32));
  return context;
}
void switch_stack(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

}  // namespace

#endif

Fiber::Fiber()
    : stack_(static_cast<char*>(mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
  if (stack_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(stack_, kGuardBytes, PROT_NONE);
}
Fiber::~Fiber() { munmap(stack_, kGuardBytes + kStackBytes); }

void Fiber::start(std::function<void()> function) {
  if (pointer_ != nullptr) __asan_unpoison_memory_region(stack_ + kGuardBytes, kStackBytes);
  function_ = std::move(function);
  pointer_ = first_frame(stack_, &Fiber::main_of, this);
}

void Fiber::enter() {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_ + kGuardBytes, kStackBytes);
  switch_stack(&outside_, pointer_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void Fiber::leave() {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, outside_stack_, outside_size_);
  switch_stack(&pointer_, outside_);
  __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_size_);
}

void Fiber::main_of(Fiber* fiber) {
  __sanitizer_finish_switch_fiber(nullptr, &fiber->outside_stack_, &fiber->outside_size_);
  fiber->function_();
  while (true) fiber->leave();
}

}  // namespace paged_stream::emulator
