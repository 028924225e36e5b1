/* A back end for the peer server that answers OUTPUT<x> with the bytes of INPUT<x>.
 *
 * It does what a comparison needs and no more: one memcpy per output, no log line, no allocation of its
 * own, statistics reported per request and per batch. It knows nothing of data types, so it serves
 * every type that the server accepts. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "triton_abi.h"

#define EXPORT __attribute__((visibility("default")))
#define TENSOR_NAME_BYTES_MAX 256

#define RETURN_IF_ERROR(call)              \
  do {                                     \
    TRITONSERVER_Error* error_ = (call);   \
    if (error_ != NULL) return error_;     \
  } while (0)

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void drop_error(TRITONSERVER_Error* error) {
  if (error != NULL) TRITONSERVER_ErrorDelete(error);
}

/* What must be remembered of a model is kept in the state pointer itself: whether it batches, and behind
 * that how many milliseconds a run takes. */
#define BATCHES 1
#define DELAY_SHIFT 1

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  static const char key[] = "\"max_batch_size\":";
  TRITONSERVER_Message* message = NULL;
  const char* json = NULL;
  size_t json_bytes = 0;
  static const char delay_key[] = "\"execute_delay_ms\":{\"string_value\":\"";
  intptr_t state = 0;

  RETURN_IF_ERROR(TRITONBACKEND_ModelConfig(model, 1, &message));
  TRITONSERVER_Error* error = TRITONSERVER_MessageSerializeToJson(message, &json, &json_bytes);
  if (error == NULL) {
    const char* found = memmem(json, json_bytes, key, sizeof key - 1);
    if (found != NULL && strtol(found + sizeof key - 1, NULL, 10) > 0) state |= BATCHES;
    found = memmem(json, json_bytes, delay_key, sizeof delay_key - 1);
    if (found != NULL) {
      state |= (intptr_t)strtol(found + sizeof delay_key - 1, NULL, 10) << DELAY_SHIFT;
    }
    error = TRITONBACKEND_ModelSetState(model, (void*)state);
  }
  drop_error(TRITONSERVER_MessageDelete(message));
  return error;
}

static TRITONSERVER_Error* copy_output(
    TRITONBACKEND_Request* request, TRITONBACKEND_Response* response, const char* output_name) {
  static const char prefix[] = "OUTPUT";
  char input_name[TENSOR_NAME_BYTES_MAX];
  if (strncmp(output_name, prefix, sizeof prefix - 1) != 0) {
    return TRITONSERVER_ErrorNew(
        TRITONSERVER_ERROR_INVALID_ARG, "identity: outputs must be named OUTPUT<x>");
  }
  int length =
      snprintf(input_name, sizeof input_name, "INPUT%s", output_name + sizeof prefix - 1);
  if (length < 0 || (size_t)length >= sizeof input_name) {
    return TRITONSERVER_ErrorNew(
        TRITONSERVER_ERROR_INVALID_ARG, "identity: the output's name is too long");
  }

  TRITONBACKEND_Input* input = NULL;
  TRITONBACKEND_Output* output = NULL;
  TRITONSERVER_DataType datatype = 0;
  const int64_t* shape = NULL;
  uint32_t dims_count = 0, buffer_count = 0;
  uint64_t byte_size = 0;
  RETURN_IF_ERROR(TRITONBACKEND_RequestInput(request, input_name, &input));
  RETURN_IF_ERROR(TRITONBACKEND_InputProperties(
      input, NULL, &datatype, &shape, &dims_count, &byte_size, &buffer_count));
  RETURN_IF_ERROR(
      TRITONBACKEND_ResponseOutput(response, &output, output_name, datatype, shape, dims_count));

  void* destination = NULL;
  TRITONSERVER_MemoryType memory_type = TRITONSERVER_MEMORY_CPU;
  int64_t memory_type_id = 0;
  RETURN_IF_ERROR(TRITONBACKEND_OutputBuffer(
      output, &destination, byte_size, &memory_type, &memory_type_id));
  if (memory_type == TRITONSERVER_MEMORY_GPU) {
    return TRITONSERVER_ErrorNew(
        TRITONSERVER_ERROR_INTERNAL, "identity: the output buffer is not in host memory");
  }

  uint64_t copied = 0;
  for (uint32_t index = 0; index < buffer_count; ++index) {
    const void* source = NULL;
    uint64_t source_bytes = 0;
    memory_type = TRITONSERVER_MEMORY_CPU;
    memory_type_id = 0;
    RETURN_IF_ERROR(TRITONBACKEND_InputBuffer(
        input, index, &source, &source_bytes, &memory_type, &memory_type_id));
    if (memory_type == TRITONSERVER_MEMORY_GPU || source_bytes > byte_size - copied) {
      return TRITONSERVER_ErrorNew(
          TRITONSERVER_ERROR_INTERNAL, "identity: the input buffer cannot be copied");
    }
    memcpy((char*)destination + copied, source, source_bytes);
    copied += source_bytes;
  }
  return NULL;
}

static TRITONSERVER_Error* fill_response(
    TRITONBACKEND_Request* request, TRITONBACKEND_Response* response) {
  uint32_t output_count = 0;
  RETURN_IF_ERROR(TRITONBACKEND_RequestOutputCount(request, &output_count));
  for (uint32_t index = 0; index < output_count; ++index) {
    const char* name = NULL;
    RETURN_IF_ERROR(TRITONBACKEND_RequestOutputName(request, index, &name));
    RETURN_IF_ERROR(copy_output(request, response, name));
  }
  return NULL;
}

static uint64_t rows_of(TRITONBACKEND_Request* request, bool batches) {
  TRITONBACKEND_Input* input = NULL;
  const int64_t* shape = NULL;
  uint32_t dims_count = 0;
  if (!batches) return 1;
  TRITONSERVER_Error* error = TRITONBACKEND_RequestInputByIndex(request, 0, &input);
  if (error == NULL) {
    error = TRITONBACKEND_InputProperties(input, NULL, NULL, &shape, &dims_count, NULL, NULL);
  }
  if (error != NULL) {
    TRITONSERVER_ErrorDelete(error);
    return 1;
  }
  return dims_count > 0 && shape[0] > 0 ? (uint64_t)shape[0] : 1;
}

/* The server owns the requests again as soon as this returns an error, so it returns none: each request
 * is answered and released here, whatever became of it. */
EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests,
    const uint32_t request_count) {
  TRITONBACKEND_Model* model = NULL;
  void* kept = NULL;
  drop_error(TRITONBACKEND_ModelInstanceModel(instance, &model));
  drop_error(TRITONBACKEND_ModelState(model, &kept));
  const intptr_t state = (intptr_t)kept;
  const long delay_ms = (long)(state >> DELAY_SHIFT);
  if (delay_ms > 0) {
    const struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
  }

  uint64_t rows = 0;
  const uint64_t batch_start_ns = now_ns();
  for (uint32_t index = 0; index < request_count; ++index) {
    TRITONBACKEND_Request* request = requests[index];
    TRITONBACKEND_Response* response = NULL;
    const uint64_t start_ns = now_ns();
    rows += rows_of(request, (state & BATCHES) != 0);

    TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, request);
    bool success = error == NULL;
    uint64_t end_ns = start_ns;
    if (success) {
      error = fill_response(request, response);
      success = error == NULL;
      end_ns = now_ns();
      drop_error(
          TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
    }
    drop_error(error);
    drop_error(TRITONBACKEND_ModelInstanceReportStatistics(
        instance, request, success, start_ns, start_ns, end_ns, end_ns));
    drop_error(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
  }
  const uint64_t batch_end_ns = now_ns();
  drop_error(TRITONBACKEND_ModelInstanceReportBatchStatistics(
      instance, rows, batch_start_ns, batch_start_ns, batch_end_ns, batch_end_ns));
  return NULL;
}
