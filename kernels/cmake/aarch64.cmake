# Toolchain file: the CPU library for aarch64 on another machine, its tests under QEMU.
#   apt-get install g++-aarch64-linux-gnu qemu-user
#   cmake -B build-aarch64 -DCMAKE_TOOLCHAIN_FILE=kernels/cmake/aarch64.cmake -DMALAX_CUDA=OFF -DMALAX_TESTS=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
