/* Sends sixteen numbers to a model that gives them back:
 *   cc -Iclients/c/include clients/c/examples/identity.c -Ltarget/debug -lnereid_ring_c -o identity
 *   LD_LIBRARY_PATH=target/debug ./identity SOCKET MODEL */
#include <stdio.h>

#include "nereid_ring.h"

enum { COUNT = 16, AREA_BYTES = 4096 };

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: identity SOCKET MODEL\n");
        return 2;
    }
    nrd_ring *ring = nrd_connect(arguments[1], NULL);
    if (!ring) {
        fprintf(stderr, "error: %s\n", nrd_error());
        return 1;
    }
    float *input = nrd_allocate(ring, COUNT * sizeof *input);
    void *area = nrd_allocate(ring, AREA_BYTES);
    for (int at = 0; at < COUNT; at++)
        input[at] = (float)at;

    const int64_t dims[] = {COUNT};
    const nrd_tensor tensor = {"INPUT0", NRD_FP32, 1, dims, input, COUNT * sizeof *input};
    const nrd_request request = {
        .model = arguments[2],
        .area = area,
        .area_bytes = AREA_BYTES,
        .inputs = &tensor,
        .input_count = 1,
    };
    uint64_t token;
    nrd_completion completion;
    if (nrd_submit(ring, &request, &token) < 0 || nrd_next(ring, -1, &completion) < 0) {
        fprintf(stderr, "error: %s\n", nrd_error());
        return 1;
    }
    if (completion.status != NRD_OK) {
        fprintf(stderr, "error: %s\n", completion.message);
        return 1;
    }
    for (size_t output = 0; output < completion.output_count; output++) {
        const nrd_tensor *found = &completion.outputs[output];
        const float *numbers = found->data;
        printf("%s:", found->name);
        for (size_t at = 0; at < found->bytes / sizeof *numbers; at++)
            printf(" %g", numbers[at]);
        printf("\n");
    }
    nrd_close(ring);
    return 0;
}
