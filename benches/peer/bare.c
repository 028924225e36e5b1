/* The two ends of small requests over TCP when all is left out that a server does for anybody.
 *
 *   bare server                                                  tells its port and sends back what comes
 *   bare client PORT PID WAY CONNECTIONS DEPTH MILLISECONDS      tells the CPU time of process PID for a
 *                                                                request, the median latency, both in µs,
 *                                                                and how many were answered meanwhile
 *
 * The client serves any server, so that a real one can be measured by the same. Each of its connections has
 * a thread that sleeps in `recv`, as those of a client with calls that block. On its standard input are what
 * goes before the first request, the first request and all others, each behind its length in four bytes. WAY
 * is `frames` (HTTP/2: a stream's number is put into each frame of a request, and an answer ends with the
 * frame that ends its stream) or the length of an answer in bytes. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES (64 << 10)
#define PART_BYTES_MAX 4096
#define CONNECTIONS_MAX 64
#define DEPTH_MAX 64
#define SAMPLES_MAX (1 << 22)
#define FRAME_HEAD_BYTES 9
#define DATA 0
#define HEADERS 1
#define END_STREAM 1
/* See servers.py. */
#define CPUCLOCK_SCHED 2

enum { BEFORE, FIRST, OTHERS, PARTS };

struct part {
  uint8_t bytes[PART_BYTES_MAX];
  uint32_t length;
};

struct connection {
  pthread_t thread;
  int socket;
  uint32_t stream;
  /* When each request in flight was sent; answers come in their order. */
  uint64_t sent[DEPTH_MAX];
  uint64_t begun, ended;
  /* What is left of the answer or frame that is being read. */
  uint32_t missing;
  uint8_t head[FRAME_HEAD_BYTES];
  uint32_t head_bytes;
};

static struct part parts[PARTS];
static uint32_t answer_bytes, depth;
static uint32_t samples_ns[SAMPLES_MAX];
static atomic_uint_fast32_t sampled;
static atomic_uint_fast64_t answered;
static atomic_bool measures;

static void must(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "bare: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
  exit(1);
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  must(clock_gettime(clock, &now) == 0, "clock_gettime");
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void no_delay(int socket) {
  int on = 1;
  must(setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
}

/* One thread: for a request a wait, a receive and a send, nothing else. */
static _Noreturn void serve(void) {
  static uint8_t buffer[BUFFER_BYTES];
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t address_bytes = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
  must(bind(listener, (struct sockaddr*)&address, sizeof address) == 0, "bind");
  must(listen(listener, CONNECTIONS_MAX) == 0, "listen");
  must(getsockname(listener, (struct sockaddr*)&address, &address_bytes) == 0, "getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[CONNECTIONS_MAX];
  must(epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event) == 0, "epoll_ctl");
  for (;;) {
    int count = epoll_wait(poll, events, CONNECTIONS_MAX, -1);
    for (int each = 0; each < count; each++) {
      int ready = events[each].data.fd;
      if (ready == listener) {
        int accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        must(accepted >= 0, "accept4");
        no_delay(accepted);
        event = (struct epoll_event){.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = accepted};
        must(epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &event) == 0, "epoll_ctl");
        continue;
      }
      ssize_t got = recv(ready, buffer, sizeof buffer, 0);
      if (got > 0) {
        must(send(ready, buffer, (size_t)got, MSG_NOSIGNAL) == got || errno == EPIPE, "send");
      } else if (got == 0 || errno != EAGAIN) {
        close(ready);
      }
    }
  }
}

/* Sends so many requests by one call. */
static void ask(struct connection* one, uint64_t count) {
  static _Thread_local uint8_t out[DEPTH_MAX * PART_BYTES_MAX];
  size_t length = 0;
  for (; count > 0; count--) {
    const struct part* part = &parts[one->begun == 0 ? FIRST : OTHERS];
    uint8_t* request = out + length;
    memcpy(request, part->bytes, part->length);
    if (answer_bytes == 0) {
      for (uint32_t at = 0; at < part->length;) {
        uint8_t* frame = request + at;
        uint32_t stream = htonl(one->stream);
        memcpy(frame + 5, &stream, sizeof stream);
        at += FRAME_HEAD_BYTES + ((uint32_t)frame[0] << 16 | (uint32_t)frame[1] << 8 | frame[2]);
      }
      one->stream += 2;
    }
    length += part->length;
    one->sent[one->begun++ % DEPTH_MAX] = clock_ns(CLOCK_MONOTONIC);
  }
  must(send(one->socket, out, length, MSG_NOSIGNAL) == (ssize_t)length, "send");
}

static void end_answer(struct connection* one) {
  uint64_t took = clock_ns(CLOCK_MONOTONIC) - one->sent[one->ended++ % DEPTH_MAX];
  atomic_fetch_add_explicit(&answered, 1, memory_order_relaxed);
  if (!atomic_load_explicit(&measures, memory_order_relaxed)) return;
  uint_fast32_t at = atomic_fetch_add_explicit(&sampled, 1, memory_order_relaxed);
  if (at < SAMPLES_MAX) samples_ns[at] = (uint32_t)took;
}

/* Counts the answers that end in these bytes. */
static void read_answers(struct connection* one, const uint8_t* bytes, size_t length) {
  while (length > 0) {
    uint32_t step = one->missing < length ? one->missing : (uint32_t)length;
    one->missing -= step;
    bytes += step;
    length -= step;
    if (answer_bytes != 0) {
      if (one->missing == 0) {
        end_answer(one);
        one->missing = answer_bytes;
      }
      continue;
    }
    while (length > 0 && one->missing == 0) {
      one->head[one->head_bytes++] = *bytes++;
      length--;
      if (one->head_bytes < FRAME_HEAD_BYTES) continue;
      one->head_bytes = 0;
      one->missing = (uint32_t)one->head[0] << 16 | (uint32_t)one->head[1] << 8 | one->head[2];
      uint8_t kind = one->head[3];
      if ((kind == DATA || kind == HEADERS) && one->head[4] & END_STREAM) end_answer(one);
    }
  }
}

static void* run_connection(void* argument) {
  struct connection* one = argument;
  static _Thread_local uint8_t in[BUFFER_BYTES];
  if (parts[BEFORE].length > 0) {
    ssize_t sent = send(one->socket, parts[BEFORE].bytes, parts[BEFORE].length, 0);
    must(sent == (ssize_t)parts[BEFORE].length, "send");
  }
  one->stream = 1;
  one->missing = answer_bytes;
  ask(one, depth);
  for (;;) {
    uint64_t ended = one->ended;
    ssize_t got = recv(one->socket, in, sizeof in, 0);
    must(got > 0, "the server hung up");
    read_answers(one, in, (size_t)got);
    if (one->ended > ended) ask(one, one->ended - ended);
  }
  return NULL;
}

static int ascending(const void* one, const void* other) {
  uint32_t a = *(const uint32_t*)one, b = *(const uint32_t*)other;
  return (a > b) - (a < b);
}

static int load(char** arguments) {
  static struct connection connections[CONNECTIONS_MAX];
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  address.sin_port = htons((uint16_t)atoi(arguments[0]));
  clockid_t cpu = (clockid_t)(~(uint32_t)atoi(arguments[1]) << 3 | CPUCLOCK_SCHED);
  answer_bytes = strcmp(arguments[2], "frames") == 0 ? 0 : (uint32_t)atoi(arguments[2]);
  int count = atoi(arguments[3]);
  depth = (uint32_t)atoi(arguments[4]);
  useconds_t window_us = (useconds_t)atoi(arguments[5]) * 1000;
  must(count > 0 && count <= CONNECTIONS_MAX && depth > 0 && depth <= DEPTH_MAX, "CONNECTIONS or DEPTH");
  for (int each = 0; each < PARTS; each++) {
    struct part* part = &parts[each];
    must(fread(&part->length, sizeof part->length, 1, stdin) == 1, "no length");
    must(part->length <= PART_BYTES_MAX, "a part is too long");
    must(fread(part->bytes, 1, part->length, stdin) == part->length, "a part is too short");
  }
  for (int each = 0; each < count; each++) {
    struct connection* one = &connections[each];
    one->socket = socket(AF_INET, SOCK_STREAM, 0);
    must(connect(one->socket, (struct sockaddr*)&address, sizeof address) == 0, "connect");
    no_delay(one->socket);
    must(pthread_create(&one->thread, NULL, run_connection, one) == 0, "pthread_create");
  }
  usleep(window_us / 4);
  uint64_t cpu_ns = clock_ns(cpu), requests = atomic_load(&answered);
  atomic_store(&measures, 1);
  usleep(window_us);
  cpu_ns = clock_ns(cpu) - cpu_ns;
  requests = atomic_load(&answered) - requests;
  atomic_store(&measures, 0);
  uint_fast32_t found = atomic_load(&sampled);
  if (found > SAMPLES_MAX) found = SAMPLES_MAX;
  must(requests > 0 && found > 0, "no answers");
  qsort(samples_ns, found, sizeof *samples_ns, ascending);
  printf("%f %f %lu\n", (double)cpu_ns / (double)requests / 1e3, samples_ns[found / 2] / 1e3, requests);
  return 0;
}

int main(int count, char** arguments) {
  if (count == 2 && strcmp(arguments[1], "server") == 0) serve();
  if (count == 8 && strcmp(arguments[1], "client") == 0) return load(arguments + 2);
  fprintf(stderr, "expected 'server', or 'client' and six arguments\n");
  return 2;
}
