// Runs the same calls as the emulator on a real device, without torch, so that a tool which slows a
// process down or looks at all of its memory has little to look at. After an error the process
// ends, and says on stderr why: the device is of no more use to it.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "calls.h"
#include "launch.cuh"

namespace paged_stream::emulator {
namespace {

// Memory of the device, of exactly the size that was asked for.
class Memory {
 public:
  explicit Memory(size_t size) { check_cuda(cudaMalloc(&data_, size), "allocating"); }
  Memory(const Memory&) = delete;
  Memory(Memory&& other) : data_(other.data_) { other.data_ = nullptr; }
  ~Memory() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

std::vector<Memory> scratch_memory;

std::vector<Bytes> run(const Call& call) {
  std::vector<Argument> args = call.arguments;
  std::vector<Memory> memory;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].kind != Argument::kBuffer) continue;
    const Bytes& bytes = call.buffers[i];
    // An empty buffer has an address, too, which nothing may be read from.
    args[i].buffer = memory.emplace_back(bytes.empty() ? 1 : bytes.size()).data();
    check_cuda(cudaMemcpy(args[i].buffer, bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
               "copying to the device");
  }
  Arguments of(args);
  call.entry()(of);
  check_cuda(cudaDeviceSynchronize(), "the kernel of " + call.name);
  scratch_memory.clear();
  std::vector<Bytes> results = call.buffers;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].kind != Argument::kBuffer) continue;
    check_cuda(
        cudaMemcpy(results[i].data(), args[i].buffer, results[i].size(), cudaMemcpyDeviceToHost),
        "copying to the host");
  }
  return results;
}

}  // namespace

float* scratch(size_t count) {
  const std::vector<float> nan(count, NAN);
  void* const data = scratch_memory.emplace_back((count + 1) * sizeof(float)).data();
  check_cuda(cudaMemcpy(data, nan.data(), count * sizeof(float), cudaMemcpyHostToDevice),
             "copying to the device");
  return static_cast<float*>(data);
}

}  // namespace paged_stream::emulator

int main() {
  using namespace paged_stream::emulator;
  while (true) {
    const Call call = Call::next();
    try {
      answer(run(call));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      std::_Exit(1);
    }
  }
}
