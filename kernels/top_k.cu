// The k largest values of each row and their places, the largest first and the first of equals before
// the others; one block a row. NaN counts as larger than infinity.
//
// The k-th largest rank is found digit by digit, from the most significant, by counting; then the k
// ranks that are not smaller are collected and sorted. Ranks are of value and place, so no two are
// equal and exactly k remain.
#include "device.cuh"

namespace nereid {

constexpr unsigned DIGIT_BITS = 8;
constexpr unsigned DIGITS = 1u << DIGIT_BITS;

// What the threads of a block share. `ranks` follows it, k rounded up to a power of two.
struct TopK {
    unsigned counts[DIGITS];
    // The digits of the k-th largest rank that are known, and how many ranks with them are wanted.
    unsigned long long prefix;
    unsigned wanted;
    unsigned collected;
    // Whether all ranks with these digits are wanted.
    unsigned decided;
    unsigned padding;
};

__device__ inline void select_digit(TopK* shared, const float* row, unsigned columns, unsigned shift) {
    for (unsigned i = threadIdx.x; i < DIGITS; i += blockDim.x) shared->counts[i] = 0;
    __syncthreads();
    const unsigned known = shift + DIGIT_BITS;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        const unsigned long long rank = ranked(row[i], i);
        if (known == 64 || rank >> known == shared->prefix) {
            atomicAdd(&shared->counts[rank >> shift & (DIGITS - 1)], 1u);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned digit = DIGITS - 1;
        while (shared->counts[digit] < shared->wanted) {
            shared->wanted -= shared->counts[digit];
            digit -= 1;
        }
        shared->prefix = shared->prefix << DIGIT_BITS | digit;
        shared->decided = shared->counts[digit] == shared->wanted;
    }
    __syncthreads();
}

// Sorts descending; `count` is a power of two.
__device__ inline void sort_ranks(unsigned long long* ranks, unsigned count) {
    for (unsigned size = 2; size <= count; size *= 2) {
        for (unsigned step = size / 2; step > 0; step /= 2) {
            for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
                const unsigned other = i ^ step;
                if (other > i) {
                    const unsigned long long a = ranks[i];
                    const unsigned long long b = ranks[other];
                    if ((i & size) == 0 ? a < b : a > b) {
                        ranks[i] = b;
                        ranks[other] = a;
                    }
                }
            }
            __syncthreads();
        }
    }
}

}  // namespace nereid

extern "C" __global__ void top_k(const float* from, float* values, long long* places, unsigned columns,
                                 unsigned k, unsigned capacity) {
    using namespace nereid;
    DYN_SHARED(TopK, shared);
    unsigned long long* ranks = reinterpret_cast<unsigned long long*>(shared + 1);
    const float* row = from + static_cast<unsigned long long>(blockIdx.x) * columns;
    if (threadIdx.x == 0) {
        shared->prefix = 0;
        shared->wanted = k;
        shared->collected = 0;
        shared->decided = 0;
    }
    // A rank of 0 is that of no value: it sorts behind all of them.
    for (unsigned i = threadIdx.x; i < capacity; i += blockDim.x) ranks[i] = 0;
    __syncthreads();
    unsigned shift = 64;
    while (shift > 0 && !shared->decided) {
        shift -= DIGIT_BITS;
        // Thread 0 changes `decided` only behind a barrier that all have passed.
        select_digit(shared, row, columns, shift);
    }
    const unsigned long long prefix = shared->prefix;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        const unsigned long long rank = ranked(row[i], i);
        if (rank >> shift >= prefix) ranks[atomicAdd(&shared->collected, 1u)] = rank;
    }
    __syncthreads();
    sort_ranks(ranks, capacity);
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        const unsigned place = place_of(ranks[i]);
        const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * k + i;
        places[at] = place;
        if (values != nullptr) values[at] = row[place];
    }
}
ENTRY(top_k)

extern "C" __global__ void argmax(const float* from, long long* places, unsigned columns) {
    using namespace nereid;
    DYN_SHARED(unsigned long long, warps);
    const float* row = from + static_cast<unsigned long long>(blockIdx.x) * columns;
    unsigned long long best = 0;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        const unsigned long long rank = ranked(row[i], i);
        best = rank > best ? rank : best;
    }
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        const unsigned long long other = __shfl_down_sync(ALL_LANES, best, step);
        best = other > best ? other : best;
    }
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned warp = 1; warp < blockDim.x / WARP; warp += 1) best = warps[warp] > best ? warps[warp] : best;
        places[blockIdx.x] = place_of(best);
    }
}
ENTRY(argmax)
