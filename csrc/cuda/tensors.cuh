// Connects tensors to launches: the device and the stream of a call.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "checks.h"
#include "dtype.h"
#include "launch.cuh"

namespace paged_stream {

// Makes a tensor's device current for its lifetime; launches go to torch's current stream.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    const int32_t index = t.get_device_index();
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == AOTI_TORCH_SUCCESS,
                    "paged_stream: could not get torch's current stream on CUDA device ", index);
    stream_ = static_cast<Stream>(stream);
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_;
};

}  // namespace paged_stream
