// Entries of each row of a batch by their indices, which are INT32 or INT64: `wanted` of the row's `count`
// entries, each of so many elements. An element has 1, 2, 4 or 8 bytes; what it means is not asked.
//
// Indices come from outside. One that names no entry gives zeros, and `check_indices` tells of it.
#include "device.cuh"

namespace nereid {

__device__ inline long long index_at(const void* indices, unsigned index_bytes, unsigned long long at) {
    if (index_bytes == 4) return static_cast<const int*>(indices)[at];
    return static_cast<const long long*>(indices)[at];
}

// A negative index is larger than any count.
__device__ inline bool is_entry(long long index, unsigned long long count) {
    return static_cast<unsigned long long>(index) < count;
}

template <class T>
__device__ inline void take(const T* entries, const void* indices, T* to, unsigned index_bytes,
                            unsigned long long rows, unsigned long long count, unsigned long long wanted,
                            unsigned long long each) {
    const unsigned long long total = rows * wanted * each;
    for (unsigned long long i = global_thread(); i < total; i += grid_threads()) {
        const unsigned long long place = i / each;
        const long long index = index_at(indices, index_bytes, place);
        const unsigned long long before = place / wanted * count;
        to[i] = is_entry(index, count) ? entries[(before + index) * each + i % each] : T(0);
    }
}

}  // namespace nereid

#define TAKE_KERNEL(bytes, type)                                                                   \
    extern "C" __global__ void take_##bytes(const type* entries, const void* indices, type* to,    \
                                            unsigned index_bytes, unsigned long long rows,         \
                                            unsigned long long count, unsigned long long wanted,   \
                                            unsigned long long each) {                             \
        nereid::take(entries, indices, to, index_bytes, rows, count, wanted, each);                \
    }                                                                                              \
    ENTRY(take_##bytes)

TAKE_KERNEL(1, unsigned char)
TAKE_KERNEL(2, unsigned short)
TAKE_KERNEL(4, unsigned)
TAKE_KERNEL(8, unsigned long long)

// The place of each row's first index that names no entry, and that index; -1 and 0 where all name one. One
// block a row.
extern "C" __global__ void check_indices(const void* indices, long long* faults, unsigned index_bytes,
                                         unsigned long long count, unsigned wanted) {
    using namespace nereid;
    DYN_SHARED(unsigned, first);
    if (threadIdx.x == 0) *first = wanted;
    __syncthreads();
    const unsigned long long base = static_cast<unsigned long long>(blockIdx.x) * wanted;
    for (unsigned i = threadIdx.x; i < wanted; i += blockDim.x) {
        if (is_entry(index_at(indices, index_bytes, base + i), count)) continue;
        atomicMin(first, i);
        break;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool is_fault = *first < wanted;
        faults[2ull * blockIdx.x] = is_fault ? static_cast<long long>(*first) : -1;
        faults[2ull * blockIdx.x + 1] = is_fault ? index_at(indices, index_bytes, base + *first) : 0;
    }
}
ENTRY(check_indices)
