/* Prints the text in a picture file, which the ensemble `ocr` of the examples reads:
 *   cc -Iclients/c/include clients/c/examples/ocr.c -Ltarget/debug -lnereid_ring_c -o ocr
 *   LD_LIBRARY_PATH=target/debug ./ocr SOCKET PICTURE */
#include <stdio.h>
#include <string.h>

#include "nereid_ring.h"

enum { AREA_BYTES = 1 << 16, LENGTH_BYTES = 4, SIDES = 4 };

static int failed(const char *what) {
    fprintf(stderr, "error: %s\n", what);
    return 1;
}

/* A file as a string in the arena, behind its length. NULL when it cannot be read or there is no room. */
static unsigned char *load(nrd_ring *ring, const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    unsigned char *string = NULL;
    long length = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (length >= 0 && length <= UINT32_MAX)
        string = nrd_allocate(ring, LENGTH_BYTES + (size_t)length);
    if (string) {
        for (int at = 0; at < LENGTH_BYTES; at++)
            string[at] = (unsigned char)(length >> 8 * at);
        *bytes = LENGTH_BYTES + (size_t)length;
        rewind(file);
        if (fread(string + LENGTH_BYTES, 1, (size_t)length, file) != (size_t)length)
            string = NULL;
    }
    fclose(file);
    return string;
}

static const nrd_tensor *find(const nrd_completion *completion, const char *name) {
    for (size_t at = 0; at < completion->output_count; at++)
        if (strcmp(completion->outputs[at].name, name) == 0)
            return &completion->outputs[at];
    return NULL;
}

static void print(const nrd_tensor *text, const nrd_tensor *confidence, const nrd_tensor *box) {
    const unsigned char *string = text->data;
    const float *sure = confidence->data;
    const int32_t *sides = box->data;
    for (int64_t line = 0; line < text->dims[0]; line++, sides += SIDES) {
        uint32_t length = 0;
        for (int at = 0; at < LENGTH_BYTES; at++)
            length |= (uint32_t)string[at] << 8 * at;
        printf("%.*s  (%.1f%% at (%d, %d, %d, %d))\n", (int)length, string + LENGTH_BYTES,
               100 * sure[line], sides[0], sides[1], sides[2], sides[3]);
        string += LENGTH_BYTES + length;
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: ocr SOCKET PICTURE\n");
        return 2;
    }
    nrd_ring *ring = nrd_connect(arguments[1], NULL);
    if (!ring)
        return failed(nrd_error());
    size_t bytes;
    const unsigned char *file = load(ring, arguments[2], &bytes);
    if (!file)
        return failed("the picture cannot be read, or is larger than the arena");

    const int64_t dims[] = {1};
    const nrd_tensor picture = {"file", NRD_BYTES, 1, dims, file, bytes};
    const nrd_request request = {
        .model = "ocr",
        .area = nrd_allocate(ring, AREA_BYTES),
        .area_bytes = AREA_BYTES,
        .inputs = &picture,
        .input_count = 1,
    };
    nrd_completion completion;
    if (nrd_submit(ring, &request, NULL) < 0 || nrd_next(ring, -1, &completion) < 0)
        return failed(nrd_error());
    if (completion.status != NRD_OK)
        return failed(completion.message);
    const nrd_tensor *text = find(&completion, "text");
    const nrd_tensor *confidence = find(&completion, "confidence"), *box = find(&completion, "box");
    if (!text || !confidence || !box)
        return failed("the model is not the one of the examples");
    print(text, confidence, box);
    nrd_close(ring);
    return 0;
}
