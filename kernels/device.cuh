// What every kernel of this folder starts from. Under nvcc it is CUDA; under a C++ compiler it is the
// shim, on which the CPU tests run the very same sources.
//
// Two macros are all that a source needs beyond CUDA: DYN_SHARED names the block's dynamic shared
// memory (static shared memory is not used, so that the shim can poison all of it), and ENTRY makes a
// kernel known to the shim by its name.
#pragma once

#ifdef __CUDACC__

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DYN_SHARED(type, name)                                                                     \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#define ENTRY(name)

#else
#include "shim/cuda.h"
#endif

// Places in memory, handed to a kernel by value.
struct PlaceTable {
    unsigned char* at[128];
};

namespace nereid {

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline unsigned long long global_thread() {
    return static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline unsigned long long grid_threads() {
    return static_cast<unsigned long long>(gridDim.x) * blockDim.x;
}

// A float as an unsigned integer of the same order: negative before positive, -0 before +0, NaN by
// its sign at either end.
__device__ inline unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One number for a value and its place: larger values are larger, and of equals the earlier one is.
__device__ inline unsigned long long ranked(float value, unsigned place) {
    return static_cast<unsigned long long>(ordered(value)) << 32 | (0xffffffffu - place);
}

__device__ inline unsigned place_of(unsigned long long rank) {
    return 0xffffffffu - static_cast<unsigned>(rank);
}

}  // namespace nereid
