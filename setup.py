"""Builds the op library ``paged_stream._C`` and maps ``scheduler/`` into the package.

Metadata is in pyproject.toml. Install with ``pip install --no-build-isolation -e .``: the extension
is compiled against the headers of the torch that is there.
"""

from pathlib import Path

from setuptools import find_packages, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

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
    # Instruction sets are chosen at run time, see csrc/cpu/dispatch.cpp: no -march here.
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]


def extension() -> CppExtension:
    sources = [Path("csrc/registration.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
    headers = [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.inl")]
    return CppExtension(
        "paged_stream._C",
        [str(path) for path in sources],
        # BuildExtension makes these absolute: ninja compiles from another folder.
        include_dirs=[str(Path("csrc/include").resolve())],
        depends=[str(path) for path in headers],
        extra_compile_args={"cxx": COMPILE_ARGS},
        py_limited_api=True,
    )


setup(
    packages=["paged_stream.scheduler", *find_packages(include=["paged_stream*"])],
    package_dir={"paged_stream.scheduler": "scheduler"},
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
