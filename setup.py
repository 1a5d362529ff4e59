"""Builds the op library ``paged_stream._C`` and packs what is in ``paged_stream/``.

Metadata is in pyproject.toml. Install with ``pip install --no-build-isolation -e .``: the extension
is compiled against the headers of the torch that is there.
"""

import os
import subprocess
from pathlib import Path
from runpy import run_path

import torch
from setuptools import Extension, find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# The stable ABI of torch 2.10: one binary serves every later release.
TORCH_TARGET_VERSION = "0x020a000000000000"
COMPILE_ARGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-Wall",
    # Vectors cross only inlined calls, so how a wide one would be passed does not matter.
    "-Wno-psabi",
    # Instruction sets are chosen at run time, see csrc/cpu/isa/dispatch.cpp: no -march here.
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]
CUDA_ARGS = [
    "-O3",
    "-std=c++20",
    "-Xcompiler=-fvisibility=hidden",
    "-DUSE_CUDA",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]
# Every GPU that programs are built for. .ci/cuda-check reads this line, too.
GPUS = "80 86 89 90a 100 120"


def gpu_targets() -> list[str]:
    """Flags for programs for `GPUS`, as far as the compiler knows them, and for a form that other
    GPUs compile when they load it. TORCH_CUDA_ARCH_LIST takes their place: BuildExtension reads it
    if no flag names a target."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return []
    assert CUDA_HOME is not None
    command = [str(Path(CUDA_HOME, "bin", "nvcc")), "--list-gpu-code"]
    known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return ["-gencode=arch=compute_80,code=compute_80"] + [
        f"-gencode=arch=compute_{gpu},code=sm_{gpu}"
        for gpu in GPUS.split()
        if f"sm_{gpu.removesuffix('a')}" in known
    ]


def toolkit_libraries() -> list[str]:
    """Where libcudart is, if torch does not see it: the nvcc that it found may be a script that
    calls the one of a toolkit somewhere else."""
    if CUDA_HOME and Path(CUDA_HOME, "lib64", "libcudart.so").exists():
        return []
    found = sorted(Path("/usr/local").glob("cuda*/lib64/libcudart.so"))
    return [str(path.parent) for path in found[-1:]]


def extension() -> Extension:
    # Whether there is a GPU here and now does not matter: what is built may run elsewhere.
    wanted = os.environ.get("USE_CUDA") != "0"
    with_cuda = wanted and CUDA_HOME is not None and torch.version.cuda is not None
    sources = [Path("csrc/registration.cpp"), *sorted(Path("csrc/cpu").rglob("*.cpp"))]
    if with_cuda:
        sources += sorted(Path("csrc/cuda").glob("*.cu"))
    headers = [path for end in ("h", "inl", "cuh") for path in Path("csrc").rglob(f"*.{end}")]
    return (CUDAExtension if with_cuda else CppExtension)(
        "paged_stream._C",
        [str(path) for path in sources],
        # BuildExtension makes these absolute: ninja compiles from another folder.
        include_dirs=[str(Path("csrc", name).resolve()) for name in ("include", "cpu", "cuda")],
        depends=[str(path) for path in headers],
        extra_compile_args={
            "cxx": COMPILE_ARGS,
            "nvcc": CUDA_ARGS + (gpu_targets() if with_cuda else []),
        },
        library_dirs=toolkit_libraries() if with_cuda else [],
        py_limited_api=True,
    )


class Build(BuildExtension):
    """Tells the library, in a header of its own, which sources it is made of."""

    def build_extensions(self):
        folder = Path("build", "generated").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        digest = run_path("csrc/source_digest.py")["source_digest"]()
        header = f'constexpr char kSourceDigest[] = "{digest}";\n'
        (folder / "source_digest.h").write_text(header)
        self.extensions[0].include_dirs.append(str(folder))
        super().build_extensions()


setup(
    # A plain layout, so that an editable install is a path, which type checkers can follow. The
    # link paged_stream/scheduler makes the folder scheduler/ part of it.
    packages=find_packages(include=["paged_stream*"]),
    package_dir={"": "."},
    package_data={
        "paged_stream": ["py.typed", "*.pyi"],
        "paged_stream.scheduler": ["py.typed"],
        "paged_stream.serve": ["page/*"],
    },
    ext_modules=[extension()],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
