"""The sections of `benchmarks.gpu_check`: what is verified and measured on a CUDA device."""
