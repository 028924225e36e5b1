// Non-maximum suppression: of boxes that overlap by more than a threshold, the one with the highest
// score is kept; one block an image. The candidates come in descending order of score, as top_k gives
// them: candidate i of an image is entry candidates[i] of its scores, [boxes, classes].
//
// Boxes suppress only boxes of their own class, unless `any_class`. Two boxes overlap by the area that
// both cover over the area that either covers; a box of no area overlaps none. A box is two corners, or
// its centre and its size where `centred`.
#include "device.cuh"

namespace nereid {

__device__ inline float overlap_area(float4 a, float4 b) {
    const float width = fminf(a.z, b.z) - fmaxf(a.x, b.x);
    const float height = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    return fmaxf(width, 0.0f) * fmaxf(height, 0.0f);
}

__device__ inline float area(float4 box) {
    return fmaxf(box.z - box.x, 0.0f) * fmaxf(box.w - box.y, 0.0f);
}

// As corners, when it is given by centre and size.
__device__ inline float4 corners(float4 box, bool centred) {
    if (!centred) return box;
    return {box.x - box.z * 0.5f, box.y - box.w * 0.5f, box.x + box.z * 0.5f, box.y + box.w * 0.5f};
}

}  // namespace nereid

extern "C" __global__ void nms(const float4* boxes, const float* scores, const long long* candidates,
                               unsigned box_count, unsigned class_count, unsigned candidate_count,
                               float overlap_max, float score_min, unsigned kept_max, unsigned centred,
                               unsigned any_class, long long* kept, int* kept_counts) {
    using namespace nereid;
    DYN_SHARED(unsigned char, suppressed);
    const unsigned long long image = blockIdx.x;
    boxes += image * box_count;
    scores += image * box_count * class_count;
    candidates += image * candidate_count;
    kept += image * kept_max;
    for (unsigned i = threadIdx.x; i < candidate_count; i += blockDim.x) {
        // What is not a number is no score.
        suppressed[i] = !(scores[candidates[i]] >= score_min);
    }
    __syncthreads();
    unsigned count = 0;
    for (unsigned i = 0; i < candidate_count && count < kept_max; i += 1) {
        // All threads read the same byte, which changes only between barriers.
        if (suppressed[i]) continue;
        const long long entry = candidates[i];
        const float4 box = corners(boxes[entry / class_count], centred);
        for (unsigned j = i + 1 + threadIdx.x; j < candidate_count; j += blockDim.x) {
            const long long other_entry = candidates[j];
            if (!any_class && other_entry % class_count != entry % class_count) continue;
            const float4 other = corners(boxes[other_entry / class_count], centred);
            const float both = overlap_area(box, other);
            if (both > overlap_max * (area(box) + area(other) - both)) suppressed[j] = 1;
        }
        if (threadIdx.x == 0) kept[count] = entry;
        count += 1;
        __syncthreads();
    }
    for (unsigned i = count + threadIdx.x; i < kept_max; i += blockDim.x) kept[i] = -1;
    if (threadIdx.x == 0) kept_counts[image] = static_cast<int>(count);
}
ENTRY(nms)

// The boxes, scores and classes of what `nms` has kept; zeros and class -1 behind the last.
extern "C" __global__ void nms_results(const float4* boxes, const float* scores, const long long* kept, unsigned images,
                                       unsigned box_count, unsigned class_count, unsigned kept_max, float4* best_boxes,
                                       float* best_scores, long long* best_classes) {
    using namespace nereid;
    const unsigned long long total = static_cast<unsigned long long>(images) * kept_max;
    for (unsigned long long i = global_thread(); i < total; i += grid_threads()) {
        const unsigned long long image = i / kept_max;
        const long long entry = kept[i];
        const bool is_there = entry >= 0;
        best_boxes[i] = is_there ? boxes[image * box_count + entry / class_count] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        best_scores[i] = is_there ? scores[image * box_count * class_count + entry] : 0.0f;
        best_classes[i] = is_there ? entry % class_count : -1;
    }
}
ENTRY(nms_results)
