// Images of 8-bit pixels, rows of interleaved channels, into a batch for a model, in one pass: crop,
// resize, crop or letterbox, order of channels, mean and scale, layout, element type.
//
// A picture's window is resized to a canvas, of which the output shows a part: a smaller part is a
// crop, a larger one a letterbox. Positions are fractions of whole numbers, so weights are exact
// before they are rounded to float32. Sides are at most 16384, which keeps products within 32 bits.
#include "device.cuh"

// One picture. Laid out as `Picture` in src/device/kernels/image.rs.
struct ImagePicture {
    // Bytes from a row to the next.
    int stride;
    // The part of the picture that is resized.
    int window_x, window_y, window_width, window_height;
    // What it is resized to, and where in that the output begins.
    int canvas_width, canvas_height, output_x, output_y;
};

// What all pictures of a batch have in common. Laid out as `Target` in src/device/kernels/image.rs.
struct ImageTarget {
    int width, height;
    // Channels of a pixel: 1 to 4.
    int channels;
    // The output's channel c is the picture's channel order[c].
    int order[4];
    float mean[4], scale[4], fill[4];
    // 0 nearest, 1 bilinear, 2 bilinear over all pixels that an output pixel covers.
    int filter;
    // Whether a channel is a plane of its own (CHW) or pixels are kept together (HWC).
    int planar;
};

namespace nereid {

// The source pixels that make up one output pixel, along one axis.
struct Taps {
    int first, last;
    // Weight of pixel i: (reach - |(2i + 1) * canvas - centre|) / total.
    int centre, reach, canvas;
    float total;

    __device__ int weight(int i) const {
        if (reach == 0) return 1;
        const int distance = (2 * i + 1) * canvas - centre;
        return reach - (distance < 0 ? -distance : distance);
    }
};

// Rounds down where C++ rounds towards zero.
__device__ inline int floor_div(int value, int divisor) {
    return value >= 0 ? value / divisor : -((divisor - 1 - value) / divisor);
}

__device__ inline Taps taps(int at, int source, int canvas, int filter) {
    Taps taps;
    taps.canvas = canvas;
    taps.centre = (2 * at + 1) * source;
    if (filter == 0) {
        taps.reach = 0;
        taps.first = taps.last = taps.centre / (2 * canvas);
        taps.total = 1.0f;
        return taps;
    }
    taps.reach = 2 * (filter == 2 && source > canvas ? source : canvas);
    const int first = floor_div(taps.centre - taps.reach - canvas, 2 * canvas) + 1;
    const int last = -floor_div(-(taps.centre + taps.reach - canvas), 2 * canvas) - 1;
    taps.first = first > 0 ? first : 0;
    taps.last = last < source - 1 ? last : source - 1;
    int total = 0;
    for (int i = taps.first; i <= taps.last; i += 1) total += taps.weight(i);
    taps.total = static_cast<float>(total);
    return taps;
}

__device__ inline void put(float value, float* to) { *to = value; }
__device__ inline void put(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void put(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }
__device__ inline void put(float value, unsigned char* to) {
    *to = static_cast<unsigned char>(fminf(fmaxf(rintf(value), 0.0f), 255.0f));
}

template <class T>
__device__ inline void image(const PlaceTable& pixels, const ImagePicture* pictures, const ImageTarget& target,
                             T* output) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= target.width || y >= target.height) return;
    const ImagePicture picture = pictures[blockIdx.z];
    const int canvas_x = x + picture.output_x;
    const int canvas_y = y + picture.output_y;
    const bool inside = canvas_x >= 0 && canvas_x < picture.canvas_width && canvas_y >= 0 &&
                        canvas_y < picture.canvas_height;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (inside) {
        const Taps across = taps(canvas_x, picture.window_width, picture.canvas_width, target.filter);
        const Taps down = taps(canvas_y, picture.window_height, picture.canvas_height, target.filter);
        for (int j = down.first; j <= down.last; j += 1) {
            const unsigned char* row = pixels.at[blockIdx.z] +
                static_cast<long long>(picture.window_y + j) * picture.stride +
                static_cast<long long>(picture.window_x) * target.channels;
            float of_row[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int i = across.first; i <= across.last; i += 1) {
                const float weight = across.weight(i) / across.total;
                for (int c = 0; c < target.channels; c += 1) {
                    of_row[c] += weight * row[i * target.channels + c];
                }
            }
            const float weight = down.weight(j) / down.total;
            for (int c = 0; c < target.channels; c += 1) sums[c] += weight * of_row[c];
        }
    }
    const long long plane = static_cast<long long>(target.width) * target.height;
    T* const first = output + static_cast<long long>(blockIdx.z) * plane * target.channels;
    for (int c = 0; c < target.channels; c += 1) {
        const float value = inside ? sums[target.order[c]] : target.fill[c];
        const long long pixel = static_cast<long long>(y) * target.width + x;
        const long long at = target.planar ? c * plane + pixel : pixel * target.channels + c;
        put((value - target.mean[c]) * target.scale[c], first + at);
    }
}

}  // namespace nereid

#define IMAGE_KERNEL(suffix, type)                                                                 \
    extern "C" __global__ void image_##suffix(const __grid_constant__ PlaceTable pixels, const ImagePicture* pictures, \
                                              const ImageTarget* target, type* output) {           \
        nereid::image(pixels, pictures, *target, output);                                          \
    }                                                                                              \
    ENTRY(image_##suffix)

IMAGE_KERNEL(u8, unsigned char)
IMAGE_KERNEL(f32, float)
IMAGE_KERNEL(f16, __half)
IMAGE_KERNEL(bf16, __nv_bfloat16)
