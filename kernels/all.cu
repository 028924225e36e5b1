// Every kernel, as one module.
#include "cast.cu"
#include "gather.cu"
#include "image.cu"
#include "nms.cu"
#include "pad.cu"
#include "softmax.cu"
#include "take.cu"
#include "top_k.cu"
