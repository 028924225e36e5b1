// Many places in memory into one batch, and a batch back into many places, in one launch each.
//
// Segment i is the bytes offsets[i]..offsets[i + 1] of the batch; segments may be of any length, also
// empty, and their places need no alignment. A block copies one stretch of the batch, whichever
// segments lie in it, so that one long segment among short ones keeps all blocks busy. A launch takes
// as many segments as a table has places.
#include "device.cuh"

namespace nereid {

// All threads of the block copy `len` bytes, sixteen or four at a time where both ends allow it.
__device__ inline void copy_bytes(unsigned char* to, const unsigned char* from, unsigned long long len) {
    const unsigned long long distance =
        reinterpret_cast<unsigned long long>(to) ^ reinterpret_cast<unsigned long long>(from);
    unsigned long long done = 0;
    if (distance % 4 == 0) {
        const unsigned long long unit = distance % 16 == 0 ? 16 : 4;
        unsigned long long head = (unit - reinterpret_cast<unsigned long long>(to) % unit) % unit;
        head = head < len ? head : len;
        for (unsigned long long i = threadIdx.x; i < head; i += blockDim.x) to[i] = from[i];
        const unsigned long long words = (len - head) / unit;
        if (unit == 16) {
            uint4* wide_to = reinterpret_cast<uint4*>(to + head);
            const uint4* wide_from = reinterpret_cast<const uint4*>(from + head);
            for (unsigned long long i = threadIdx.x; i < words; i += blockDim.x) wide_to[i] = wide_from[i];
        } else {
            unsigned* wide_to = reinterpret_cast<unsigned*>(to + head);
            const unsigned* wide_from = reinterpret_cast<const unsigned*>(from + head);
            for (unsigned long long i = threadIdx.x; i < words; i += blockDim.x) wide_to[i] = wide_from[i];
        }
        done = head + words * unit;
    }
    for (unsigned long long i = done + threadIdx.x; i < len; i += blockDim.x) to[i] = from[i];
}

// The segment that holds byte `at`: the last that does not begin after it.
__device__ inline unsigned segment_of(const unsigned long long* offsets, unsigned count, unsigned long long at) {
    unsigned low = 0;
    unsigned high = count;
    while (high - low > 1) {
        const unsigned middle = low + (high - low) / 2;
        if (offsets[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

template <bool SCATTER>
__device__ inline void move_stretch(const PlaceTable& places, const unsigned long long* offsets,
                                    unsigned count, unsigned char* batch, unsigned long long stretch) {
    const unsigned long long total = offsets[count];
    unsigned long long at = blockIdx.x * stretch;
    const unsigned long long end = at + stretch < total ? at + stretch : total;
    if (at >= end) return;
    for (unsigned segment = segment_of(offsets, count, at); at < end; segment += 1) {
        const unsigned long long segment_end = offsets[segment + 1] < end ? offsets[segment + 1] : end;
        unsigned char* place = places.at[segment] + (at - offsets[segment]);
        if (SCATTER) copy_bytes(place, batch + at, segment_end - at);
        else copy_bytes(batch + at, place, segment_end - at);
        at = segment_end;
    }
}

}  // namespace nereid

extern "C" __global__ void gather(const __grid_constant__ PlaceTable sources, const unsigned long long* offsets,
                                  unsigned count, unsigned char* batch, unsigned long long stretch) {
    nereid::move_stretch<false>(sources, offsets, count, batch, stretch);
}
ENTRY(gather)

extern "C" __global__ void scatter(const __grid_constant__ PlaceTable destinations, const unsigned long long* offsets,
                                   unsigned count, unsigned char* batch, unsigned long long stretch) {
    nereid::move_stretch<true>(destinations, offsets, count, batch, stretch);
}
ENTRY(scatter)
