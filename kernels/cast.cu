// Between float32 and narrower types, with a scale and a zero point:
//
//   narrow = saturate(round(wide / scale) + zero_point)      wide = (narrow - zero_point) * scale
//
// Rounding is to nearest, ties to even. Integers saturate, and NaN becomes the zero point; float16 and
// bfloat16 are not rounded before the conversion and overflow to infinity, as IEEE 754 has it.
#include "device.cuh"

namespace nereid {

__device__ inline float saturated(float rounded, float zero_point, float low, float high) {
    const float moved = rounded + zero_point;
    return moved != moved ? zero_point : fminf(fmaxf(moved, low), high);
}

__device__ inline void narrow(float value, float scale, float zero_point, unsigned char* to) {
    *to = static_cast<unsigned char>(saturated(rintf(value / scale), zero_point, 0.0f, 255.0f));
}

__device__ inline void narrow(float value, float scale, float zero_point, signed char* to) {
    *to = static_cast<signed char>(saturated(rintf(value / scale), zero_point, -128.0f, 127.0f));
}

__device__ inline void narrow(float value, float scale, float zero_point, __half* to) {
    *to = __float2half_rn(value / scale + zero_point);
}

__device__ inline void narrow(float value, float scale, float zero_point, __nv_bfloat16* to) {
    *to = __float2bfloat16_rn(value / scale + zero_point);
}

__device__ inline float widened(unsigned char value) { return value; }
__device__ inline float widened(signed char value) { return value; }
__device__ inline float widened(__half value) { return __half2float(value); }
__device__ inline float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ inline void narrow_all(const float* from, T* to, unsigned long long count, float scale, float zero_point) {
    for (unsigned long long i = global_thread(); i < count; i += grid_threads()) {
        narrow(from[i], scale, zero_point, to + i);
    }
}

template <class T>
__device__ inline void widen_all(const T* from, float* to, unsigned long long count, float scale, float zero_point) {
    for (unsigned long long i = global_thread(); i < count; i += grid_threads()) {
        to[i] = (widened(from[i]) - zero_point) * scale;
    }
}

}  // namespace nereid

#define CAST_KERNELS(suffix, type)                                                                 \
    extern "C" __global__ void narrow_##suffix(const float* from, type* to, unsigned long long count, \
                                               float scale, float zero_point) {                    \
        nereid::narrow_all(from, to, count, scale, zero_point);                                    \
    }                                                                                              \
    ENTRY(narrow_##suffix)                                                                         \
    extern "C" __global__ void widen_##suffix(const type* from, float* to, unsigned long long count, \
                                              float scale, float zero_point) {                     \
        nereid::widen_all(from, to, count, scale, zero_point);                                     \
    }                                                                                              \
    ENTRY(widen_##suffix)

CAST_KERNELS(u8, unsigned char)
CAST_KERNELS(i8, signed char)
CAST_KERNELS(f16, __half)
CAST_KERNELS(bf16, __nv_bfloat16)
