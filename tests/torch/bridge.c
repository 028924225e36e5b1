/* Stands in for the library that links libtorch, and for torch: its modules give back what they are given.
 * The types are those of src/backend/pytorch/table.rs. What a library says of itself is told by macros:
 *
 *     TABLE   the version of its table
 *     BUILT   the version of torch that it was built for, as a string
 *     TORCH   the version of torch that libtorch_cpu.so has, as its number
 *
 * There are two GPUs, where each loaded module takes a mebibyte of the first one's memory. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { MEBIBYTE = 1 << 20, KIND_TENSOR = 1 };

struct text {
    const char *data;
    size_t len;
};

struct gpu_memory {
    uint64_t reserved_bytes, allocated_bytes;
};

struct argument {
    struct text name, type_name;
    uint32_t kind;
    bool has_default, is_written;
};

struct arguments {
    const struct argument *data;
    size_t len;
    const uint32_t *results;
    size_t results_len;
    bool stateful;
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

struct results {
    const struct value *data;
    size_t len;
    bool dictionary;
    struct value value;
    int64_t dims[8];
};

static atomic_int modules;

static struct text last_error(void) { return (struct text){"it failed", 9}; }

static int32_t gpu_count(void) { return 2; }

static int32_t gpu_memory(int32_t gpu, struct gpu_memory *memory) {
    uint64_t taken = gpu == 0 ? (uint64_t)modules * MEBIBYTE : 0;
    *memory = (struct gpu_memory){taken, taken / 2};
    return 0;
}

static int32_t inspect(struct text path, struct arguments **arguments) {
    static const struct argument x = {.name = {"x", 1}, .type_name = {"Tensor", 6}, .kind = KIND_TENSOR};
    static struct arguments all = {.data = &x, .len = 1};
    (void)path;
    *arguments = &all;
    return 0;
}

static void free_arguments(struct arguments *arguments) { (void)arguments; }

static int32_t load(struct text path, const void *options, void **module) {
    (void)path, (void)options;
    modules++;
    *module = &modules;
    return 0;
}

static void free_module(void *module) {
    (void)module;
    modules--;
}

static int32_t forward(const void *module, const struct value *inputs, size_t count, struct results **results) {
    (void)module, (void)count;
    struct results *made = malloc(sizeof *made);
    made->value = inputs[0];
    for (size_t axis = 0; axis < inputs[0].rank; axis++) {
        made->dims[axis] = inputs[0].dims[axis];
    }
    made->value.dims = made->dims;
    made->data = &made->value;
    made->len = 1;
    made->dictionary = false;
    *results = made;
    return 0;
}

static void free_results(struct results *results) {
    results->value.release(results->value.owner);
    free(results);
}

const void *nereid_pytorch_table(void) {
    static const struct {
        uint32_t version;
        struct text torch_version;
        struct text (*last_error)(void);
        int32_t (*gpu_count)(void);
        int32_t (*gpu_memory)(int32_t, struct gpu_memory *);
        int32_t (*inspect)(struct text, struct arguments **);
        void (*free_arguments)(struct arguments *);
        int32_t (*load)(struct text, const void *, void **);
        void (*free_module)(void *);
        int32_t (*forward)(const void *, const struct value *, size_t, struct results **);
        void (*free_results)(struct results *);
    } table = {TABLE,       {BUILT, sizeof BUILT - 1}, last_error,  gpu_count, gpu_memory,  inspect,
               free_arguments, load,                   free_module, forward,   free_results};
    return &table;
}

uint64_t aoti_torch_abi_version(void) { return TORCH; }
