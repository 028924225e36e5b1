// Softmax and its logarithm over rows; one block a row. The row is read twice: once for its largest
// value and the sum of exponentials under it, kept up together, and once to write.
#include "device.cuh"

namespace nereid {

// The largest of some values, and the sum of exp(value - largest) over them.
struct Partial {
    float largest, sum;
};

__device__ inline Partial joined(Partial a, Partial b) {
    // An empty part has no largest value, and infinity minus infinity is not a number.
    if (a.sum == 0.0f) return b;
    if (b.sum == 0.0f) return a;
    const float largest = fmaxf(a.largest, b.largest);
    return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

__device__ inline Partial of_warp(Partial partial) {
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        const Partial other = {__shfl_down_sync(ALL_LANES, partial.largest, step),
                               __shfl_down_sync(ALL_LANES, partial.sum, step)};
        partial = joined(partial, other);
    }
    return partial;
}

template <bool LOGARITHM>
__device__ inline void softmax(const float* from, float* to, unsigned columns) {
    DYN_SHARED(Partial, warps);
    const unsigned long long base = static_cast<unsigned long long>(blockIdx.x) * columns;
    Partial partial = {0.0f, 0.0f};
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        partial = joined(partial, {from[base + i], 1.0f});
    }
    partial = of_warp(partial);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = partial;
    __syncthreads();
    if (threadIdx.x < WARP) {
        partial = {0.0f, 0.0f};
        if (threadIdx.x < blockDim.x / WARP) partial = warps[threadIdx.x];
        partial = of_warp(partial);
        if (threadIdx.x == 0) warps[0] = partial;
    }
    __syncthreads();
    const Partial row = warps[0];
    const float logarithm = logf(row.sum);
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        const float below = from[base + i] - row.largest;
        to[base + i] = LOGARITHM ? below - logarithm : expf(below) / row.sum;
    }
}

}  // namespace nereid

extern "C" __global__ void softmax(const float* from, float* to, unsigned columns) {
    nereid::softmax<false>(from, to, columns);
}
ENTRY(softmax)

extern "C" __global__ void log_softmax(const float* from, float* to, unsigned columns) {
    nereid::softmax<true>(from, to, columns);
}
ENTRY(log_softmax)
