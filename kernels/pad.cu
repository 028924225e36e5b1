// Sequences of different lengths, one behind the other, into rows of one length, and back. Sequence i
// is the elements offsets[i]..offsets[i + 1]; the rest of its row is a given value. An element has 1,
// 2, 4 or 8 bytes; what it means is not asked.
#include "device.cuh"

namespace nereid {

template <class T>
__device__ inline void pad(const T* from, const unsigned long long* offsets, T* to, unsigned long long length,
                           T value) {
    const unsigned long long begin = offsets[blockIdx.y];
    const unsigned long long given = offsets[blockIdx.y + 1] - begin;
    T* row = to + blockIdx.y * length;
    for (unsigned long long i = global_thread(); i < length; i += grid_threads()) {
        row[i] = i < given ? from[begin + i] : value;
    }
}

template <class T>
__device__ inline void unpad(const T* from, const unsigned long long* offsets, T* to, unsigned long long length) {
    const unsigned long long begin = offsets[blockIdx.y];
    const unsigned long long given = offsets[blockIdx.y + 1] - begin;
    const T* row = from + blockIdx.y * length;
    for (unsigned long long i = global_thread(); i < given && i < length; i += grid_threads()) {
        to[begin + i] = row[i];
    }
}

}  // namespace nereid

#define PAD_KERNELS(bytes, type)                                                                   \
    extern "C" __global__ void pad_##bytes(const type* from, const unsigned long long* offsets, type* to, \
                                           unsigned long long length, type value) {                \
        nereid::pad(from, offsets, to, length, value);                                             \
    }                                                                                              \
    ENTRY(pad_##bytes)                                                                             \
    extern "C" __global__ void unpad_##bytes(const type* from, const unsigned long long* offsets, type* to, \
                                             unsigned long long length) {                          \
        nereid::unpad(from, offsets, to, length);                                                  \
    }                                                                                              \
    ENTRY(unpad_##bytes)

PAD_KERNELS(1, unsigned char)
PAD_KERNELS(2, unsigned short)
PAD_KERNELS(4, unsigned)
PAD_KERNELS(8, unsigned long long)

// 1 for each place of a row that its sequence has, and 0 for the rest. Offsets count places here.
extern "C" __global__ void pad_mask(const unsigned long long* offsets, long long* to, unsigned long long length) {
    using namespace nereid;
    const unsigned long long given = offsets[blockIdx.y + 1] - offsets[blockIdx.y];
    long long* row = to + blockIdx.y * length;
    for (unsigned long long i = global_thread(); i < length; i += grid_threads()) row[i] = i < given;
}
ENTRY(pad_mask)
