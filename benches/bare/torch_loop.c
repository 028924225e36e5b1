/* A TorchScript module run bare: the functions of the server's own library for libtorch, in a loop.
 *
 *     torch_loop FOLDER MODEL SECONDS CHANNELS HEIGHT WIDTH SIZE...
 *
 * FOLDER is that of the back end `pytorch`. The module takes one FP32 tensor of the shape
 * [SIZE, CHANNELS, HEIGHT, WIDTH]. Prints, as JSON, the seconds that a run takes at each batch size: on the
 * clock ("wall") and of the CPU ("cpu").
 *
 * The types are those of src/backend/pytorch/table.rs, whose VERSION this program asks for. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VERSION = 2, HOST = -1, UNCHANGED = -1, ON = 1, KIND_TENSOR = 1, FLOAT32 = 6 };
enum { ROUNDS = 3, WARM_UP_RUNS = 4, SIZES_MAX = 64, PATH_BYTES_MAX = 4096 };

struct text {
    const char *data;
    size_t len;
};

struct options {
    int32_t device;
    uint64_t stream;
    bool copied_arguments, dictionary, inference_mode, optimized_execution, cache_cleaning;
    int32_t intra_op_threads, inter_op_threads, tensor_fuser, jit_profiling, jit_executor, cudnn;
};

struct value {
    struct text name;
    uint32_t kind;
    int32_t element;
    const void *data;
    size_t len;
    const int64_t *dims;
    size_t rank;
    void *owner;
    void (*release)(void *);
};

struct table {
    uint32_t version;
    struct text torch_version;
    struct text (*last_error)(void);
    int32_t (*gpu_count)(void);
    int32_t (*inspect)(struct text, void **);
    void (*free_arguments)(void *);
    int32_t (*load)(struct text, const struct options *, void **);
    void (*free_module)(void *);
    int32_t (*forward)(const void *, const struct value *, size_t, void **);
    void (*free_results)(void *);
};

static const struct table *table;

static void fail(const char *what, const char *why, size_t len) {
    fprintf(stderr, "torch_loop: %s: %.*s\n", what, (int)len, why);
    exit(1);
}

static void *opened(const char *folder, const char *name) {
    char path[PATH_BYTES_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        fail(name, why, strlen(why));
    }
    return library;
}

static void check(const char *what, int32_t outcome) {
    if (outcome != 0) {
        struct text why = table->last_error();
        fail(what, why.data, why.len);
    }
}

static void keep(void *owner) {
    (void)owner;
}

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void run(const void *module, const int64_t dims[4], const float *pixels) {
    static int owner;
    struct value input = {
        .kind = KIND_TENSOR,
        .element = FLOAT32,
        .data = pixels,
        .len = sizeof(float) * (size_t)(dims[0] * dims[1] * dims[2] * dims[3]),
        .dims = dims,
        .rank = 4,
        .owner = &owner,
        .release = keep,
    };
    void *results;
    check("forward", table->forward(module, &input, 1, &results));
    table->free_results(results);
}

int main(int count, char **arguments) {
    if (count < 8 || count - 7 > SIZES_MAX) {
        fprintf(stderr, "usage: torch_loop FOLDER MODEL SECONDS CHANNELS HEIGHT WIDTH SIZE...\n");
        return 2;
    }
    const char *folder = arguments[1];
    const double seconds = atof(arguments[3]);
    const int sizes = count - 7;
    opened(folder, "lib/libtorch_cpu.so");
    void *library = opened(folder, "libnereid_pytorch.so");
    const struct table *(*entry)(void);
    *(void **)&entry = dlsym(library, "nereid_pytorch_table");
    if (entry == NULL || (table = entry())->version != VERSION) {
        const char *why = "it has another table of functions";
        fail("libnereid_pytorch.so", why, strlen(why));
    }
    /* What the server takes when a configuration says nothing else. */
    const struct options options = {
        .device = HOST,
        .inference_mode = true,
        .optimized_execution = true,
        .intra_op_threads = 1,
        .tensor_fuser = UNCHANGED,
        .jit_profiling = UNCHANGED,
        .jit_executor = UNCHANGED,
        .cudnn = ON,
    };
    void *module;
    const struct text path = {arguments[2], strlen(arguments[2])};
    check("load", table->load(path, &options, &module));

    int64_t dims[SIZES_MAX][4];
    float *pixels[SIZES_MAX];
    double wall[SIZES_MAX] = {0}, cpu[SIZES_MAX] = {0}, runs[SIZES_MAX] = {0};
    for (int size = 0; size < sizes; size++) {
        dims[size][0] = atoll(arguments[7 + size]);
        for (int axis = 1; axis < 4; axis++) {
            dims[size][axis] = atoll(arguments[3 + axis]);
        }
        size_t elements = (size_t)(dims[size][0] * dims[size][1] * dims[size][2] * dims[size][3]);
        pixels[size] = aligned_alloc(64, (sizeof(float) * elements + 63) / 64 * 64);
        if (pixels[size] == NULL) {
            fail("memory", "there is none", strlen("there is none"));
        }
        for (size_t index = 0; index < elements; index++) {
            pixels[size][index] = (float)(index % 255) / 255;
        }
        for (int warm_up = 0; warm_up < WARM_UP_RUNS; warm_up++) {
            run(module, dims[size], pixels[size]);
        }
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int size = 0; size < sizes; size++) {
            const double begun = seconds_of(CLOCK_MONOTONIC), cpu_begun = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
            double now;
            do {
                run(module, dims[size], pixels[size]);
                runs[size]++;
                now = seconds_of(CLOCK_MONOTONIC);
            } while (now - begun < seconds / ROUNDS / sizes);
            wall[size] += now - begun;
            cpu[size] += seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_begun;
        }
    }
    for (int size = 0; size < sizes; size++) {
        printf("%s\"%lld\": {\"wall\": %.9f, \"cpu\": %.9f}", size == 0 ? "{" : ", ", (long long)dims[size][0],
               wall[size] / runs[size], cpu[size] / runs[size]);
    }
    printf("}\n");
    return 0;
}
