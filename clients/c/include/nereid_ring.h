/* A client of Nereid's ring: requests to a server on the same host, by memory shared with it.
 *
 * Tensors lie in memory from nrd_allocate. A request names it by pointers; the memory of a request is
 * left alone, and not freed, until the request's last completion. One thread uses a ring at a time.
 *
 * Functions that return int return 0 or more for success and -1 for failure; nrd_error tells why.
 * Link with -lnereid_ring_c. */
#ifndef NEREID_RING_H
#define NEREID_RING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nrd_ring nrd_ring;

/* Types of elements. */
enum {
    NRD_BOOL = 1, NRD_UINT8, NRD_UINT16, NRD_UINT32, NRD_UINT64, NRD_INT8, NRD_INT16, NRD_INT32,
    NRD_INT64, NRD_FP16, NRD_FP32, NRD_FP64, NRD_BYTES, NRD_BF16
};

/* How a request went. */
enum {
    NRD_OK = 0, NRD_UNKNOWN, NRD_INTERNAL, NRD_NOT_FOUND, NRD_INVALID_ARGUMENT, NRD_UNAVAILABLE,
    NRD_UNSUPPORTED, NRD_ALREADY_EXISTS, NRD_CANCELLED
};

/* Flags of nrd_request. */
enum { NRD_SEQUENCE_START = 1, NRD_SEQUENCE_END = 2 };

/* Kinds of nrd_parameter. */
enum { NRD_BOOLEAN = 1, NRD_SIGNED, NRD_UNSIGNED, NRD_DOUBLE, NRD_TEXT };

typedef struct {
    uint64_t arena_bytes; /* memory for all tensors that are in use at a time */
    uint32_t requests;    /* requests that may be in flight */
    uint32_t spin;        /* not 0: look for answers all the time, and ask the server to do the like */
} nrd_options;

typedef struct {
    const char *name;
    uint32_t datatype;
    uint32_t rank;
    const int64_t *dims;
    const void *data; /* in the arena */
    size_t bytes;
} nrd_tensor;

typedef struct {
    const char *name;
    uint32_t classes; /* how many classes to answer instead of the tensor; 0 for the tensor */
    void *place;      /* in the arena; NULL leaves the place to the server, which takes the area */
    size_t bytes;
} nrd_wanted;

typedef struct {
    const char *name;
    uint32_t kind;
    int64_t integer; /* of NRD_BOOLEAN, NRD_SIGNED and, by its bits, NRD_UNSIGNED */
    double number;
    const char *text;
} nrd_parameter;

/* What is NULL or 0 is left out. */
typedef struct {
    const char *model;
    const char *version;
    const char *id;
    const char *sequence_name;
    uint64_t sequence;
    uint32_t flags;
    uint64_t priority;    /* 1 is the most urgent */
    uint64_t timeout_us;  /* how long it may wait in the model's queue */
    uint64_t deadline_us; /* after which nobody waits for it */
    void *area;           /* in the arena: where answers go, and outputs without a place */
    size_t area_bytes;
    const nrd_tensor *inputs;
    size_t input_count;
    const nrd_wanted *outputs; /* none wants all */
    size_t output_count;
    const nrd_parameter *parameters;
    size_t parameter_count;
} nrd_request;

/* What it points to is there until the next call of nrd_next or nrd_close; outputs' data lies in the
 * request's memory and stays as long as that. */
typedef struct {
    uint64_t token;
    uint32_t status;
    uint32_t is_final; /* not 0: no other completion of this request follows */
    const char *message;
    const char *model;
    int64_t version;
    const char *id;
    const nrd_tensor *outputs;
    size_t output_count;
    uint32_t has_answer; /* 0: this only ends a request of several answers */
} nrd_completion;

/* Connects to the server that listens at path. options may be NULL. NULL for failure: see nrd_error. */
nrd_ring *nrd_connect(const char *path, const nrd_options *options);

/* Ends a connection; requests in flight are given up, and all memory of the ring goes. */
void nrd_close(nrd_ring *ring);

/* Ends a connection, but leaves the ring's memory to those who still look at it, until nrd_close. */
void nrd_hang_up(nrd_ring *ring);

/* What went wrong last in the calling thread. There until the thread's next call. */
const char *nrd_error(void);

/* Memory of the arena, at a multiple of 64. NULL when there is not so much in a row. */
void *nrd_allocate(nrd_ring *ring, size_t bytes);

/* Gives memory back; NULL is nothing. */
void nrd_free(nrd_ring *ring, void *memory);

/* Puts a request. The server learns of it by nrd_wake, or when nrd_next waits. */
int nrd_submit(nrd_ring *ring, const nrd_request *request, uint64_t *token);

/* Wakes the server if it sleeps. */
void nrd_wake(nrd_ring *ring);

/* Asks the server to give a request up; it has its last completion all the same. */
int nrd_cancel(nrd_ring *ring, uint64_t token);

/* Takes the next completion: 1 when there is one, 0 when none came within patience_us microseconds.
 * 0 does not wait; less than 0 waits for ever. */
int nrd_next(nrd_ring *ring, int64_t patience_us, nrd_completion *completion);

/* Requests that have not had their last completion. */
size_t nrd_in_flight(const nrd_ring *ring);

/* The socket, for event loops: it can be read when a completion comes after nrd_arm. */
int nrd_descriptor(const nrd_ring *ring);

/* Asks for that: 1 when a completion is there already. */
int nrd_arm(nrd_ring *ring);

/* To be called when the socket can be read. */
int nrd_hear(nrd_ring *ring);

#ifdef __cplusplus
}
#endif

#endif
