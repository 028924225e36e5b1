// As much of CUDA as the kernels of this project use, on one CPU thread, for tests.
//
// A kernel runs block by block; each of a block's threads is a fiber with a stack of its own. Fibers
// change places at barriers and shuffles only, so an atomic operation is an ordinary one. Dynamic
// shared memory begins as NaN: a kernel that reads what it did not write gives results that no
// tolerance admits. Threads that wait at a barrier which the others never reach fail the launch. What
// it cannot see are races within a stretch between two barriers, and misaligned accesses.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define DYN_SHARED(type, name) type* name = static_cast<type*>(shim::dynamic_shared())

struct uint3 {
    unsigned x, y, z;
};
using dim3 = uint3;
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace shim {

struct Grid {
    dim3 blocks, threads;
    unsigned shared_bytes;
};

void* dynamic_shared();
void block_barrier();
// Waits until every lane of the warp has put its value, and gives that of `lane`.
unsigned long long shuffle(unsigned mask, unsigned long long value, unsigned lane);
// 0, or 1 when threads of a block waited for each other for ever.
int run(const Grid& grid, void (*body)(void*), void* arguments);

// A kernel and the places of its arguments.
template <class... Parameters>
struct Call {
    void (*kernel)(Parameters...);
    void** pointers;

    template <std::size_t... Index>
    void apply(std::index_sequence<Index...>) const {
        kernel(*static_cast<std::remove_const_t<Parameters>*>(pointers[Index])...);
    }

    static void body(void* call) {
        static_cast<Call*>(call)->apply(std::index_sequence_for<Parameters...>{});
    }
};

template <class... Parameters>
int launch(void (*kernel)(Parameters...), const Grid& grid, void** pointers) {
    Call<Parameters...> call = {kernel, pointers};
    return run(grid, Call<Parameters...>::body, &call);
}

// Writes the sizes of a kernel's parameters, and gives how many there are.
template <class... Parameters>
unsigned parameters(void (*)(Parameters...), std::size_t* sizes) {
    unsigned count = 0;
    ((sizes[count++] = sizeof(Parameters)), ...);
    return count;
}

}  // namespace shim

#define ENTRY(name)                                                                                \
    extern "C" int shim_##name(const shim::Grid* grid, void** arguments) {                         \
        return shim::launch(name, *grid, arguments);                                               \
    }                                                                                              \
    extern "C" unsigned shim_parameters_##name(std::size_t* sizes) {                               \
        return shim::parameters(name, sizes);                                                      \
    }

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

inline void __syncthreads() { shim::block_barrier(); }

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step) {
    static_assert(sizeof(T) <= 8);
    const unsigned lane = threadIdx.x % 32;
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    // A lane beyond the warp's end gives its own value.
    bits = shim::shuffle(mask, bits, lane + step < 32 ? lane + step : lane);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline unsigned atomicAdd(unsigned* to, unsigned value) {
    const unsigned before = *to;
    *to += value;
    return before;
}

inline unsigned atomicMin(unsigned* to, unsigned value) {
    const unsigned before = *to;
    if (value < before) *to = value;
    return before;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct __half {
    std::uint16_t bits;
};
struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

inline __half __float2half_rn(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned sign = bits >> 16 & 0x8000;
    const float size = std::fabs(value);
    unsigned narrow;
    if (value != value) {
        narrow = 0x7e00;
    } else if (size >= 65520.0f) {
        narrow = 0x7c00;
    } else if (size < 0x1p-14f) {
        // Subnormal: a whole number of the smallest steps.
        narrow = static_cast<unsigned>(std::nearbyint(size * 0x1p24f));
    } else {
        const unsigned magnitude = __float_as_uint(size);
        narrow = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    }
    return {static_cast<std::uint16_t>(sign | narrow)};
}

inline float __half2float(__half value) {
    const float sign = value.bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = value.bits >> 10 & 0x1f;
    const int fraction = value.bits & 0x3ff;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
    return sign * std::ldexp(static_cast<float>(fraction | 0x400), exponent - 25);
}
