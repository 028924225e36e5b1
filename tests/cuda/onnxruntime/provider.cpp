// ONNX Runtime with an execution provider for CUDA that does nothing of the kind: the true library runs the models on
// the processors, over memory of the stand-in for the driver, which is the host's. What the server asks of CUDA is
// written down, and a run waits for its stream first, as work on the stream would.
//
// The numbers are the places of functions in `OrtApi` of onnxruntime_c_api.h, which are never changed.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

enum Place {
    CREATE_SESSION = 7,
    GET_TENSOR_MUTABLE_DATA = 51,
    CREATE_MEMORY_INFO = 68,
    CREATE_CPU_MEMORY_INFO = 69,
    RELEASE_VALUE = 96,
    GET_AVAILABLE_PROVIDERS = 125,
    RELEASE_AVAILABLE_PROVIDERS = 126,
    RUN_WITH_BINDING = 133,
    ADD_RUN_CONFIG_ENTRY = 165,
    APPEND_CUDA = 204,
    CREATE_CUDA_OPTIONS = 205,
    UPDATE_CUDA_OPTIONS = 206,
    RELEASE_CUDA_OPTIONS = 208,
    GET_TENSOR_SIZE = 318,
    GET_TENSOR_TYPE_AND_SHAPE = 414,
    PLACES = GET_TENSOR_TYPE_AND_SHAPE + 1,
};

using Status = void*;
using Function = void*;

struct Base {
    const Function* (*get_api)(uint32_t version);
    const char* (*get_version)();
};

struct Options {
    uintptr_t stream = 0;
};

const Base* truth = nullptr;
const Function* true_api = nullptr;
Function own_api[PLACES];
std::mutex guard;
// Of session options, then of sessions.
std::map<const void*, uintptr_t> streams;
struct Output {
    uint64_t address = 0;
    void* context = nullptr;
};

// Where outputs of the library's own lie on the GPU, by their values.
std::map<const void*, Output> outputs;

template <typename Type>
Type* the_true(Place place) {
    return reinterpret_cast<Type*>(true_api[place]);
}

void note(const std::string& line) {
    std::lock_guard<std::mutex> held(guard);
    if (FILE* file = fopen(getenv("ORT_STANDIN_REPORT"), "a")) {
        fprintf(file, "%s\n", line.c_str());
        fclose(file);
    }
}

Status available(char*** names, int* count) {
    static char cuda[] = "CUDAExecutionProvider", cpu[] = "CPUExecutionProvider";
    static char* all[] = {cuda, cpu};
    *names = all;
    *count = 2;
    return nullptr;
}

Status release_available(char**, int) { return nullptr; }

Status create_options(Options** options) {
    *options = new Options;
    return nullptr;
}

void release_options(Options* options) { delete options; }

Status update_options(Options* options, const char* const* keys, const char* const* values, size_t count) {
    for (size_t index = 0; index < count; ++index) {
        if (strcmp(keys[index], "user_compute_stream") == 0) {
            options->stream = strtoull(values[index], nullptr, 10);
            note(std::string("option stream ") + (options->stream ? "given" : "null"));
        } else {
            note(std::string("option ") + keys[index] + " " + values[index]);
        }
    }
    return nullptr;
}

Status append(void* session_options, const Options* options) {
    std::lock_guard<std::mutex> held(guard);
    streams[session_options] = options->stream;
    return nullptr;
}

Status create_session(void* env, const char* path, const void* options, void** session) {
    auto create = the_true<Status(void*, const char*, const void*, void**)>(CREATE_SESSION);
    Status status = create(env, path, options, session);
    std::lock_guard<std::mutex> held(guard);
    if (!status && streams.count(options)) {
        streams[*session] = streams[options];
        streams.erase(options);
    }
    return status;
}

Status create_memory_info(const char* name, int allocator, int device, int type, void** info) {
    if (strcmp(name, "Cuda") == 0) {
        note("memory of GPU " + std::to_string(device));
        return the_true<Status(int, int, void**)>(CREATE_CPU_MEMORY_INFO)(allocator, type, info);
    }
    return the_true<Status(const char*, int, int, int, void**)>(CREATE_MEMORY_INFO)(name, allocator, device, type, info);
}

Status add_run_config_entry(void*, const char* key, const char* value) {
    note(std::string("run ") + key + " " + value);
    return nullptr;
}

// A function of the stand-in for the driver, if that is in use.
template <typename Type>
Type* driver(const char* name) {
    void* library = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<Type*>(library ? dlsym(library, name) : nullptr);
}

// An output that the library has made lies on the GPU of the context that is current.
Status get_tensor_mutable_data(void* value, void** data) {
    Status status = the_true<Status(void*, void**)>(GET_TENSOR_MUTABLE_DATA)(value, data);
    auto current = driver<int(void**)>("cuCtxGetCurrent");
    void* context = nullptr;
    if (status || !current || current(&context) != 0 || !context) return status;
    size_t size = 0;
    if ((status = the_true<Status(const void*, size_t*)>(GET_TENSOR_SIZE)(value, &size))) return status;
    uint64_t address = 0;
    if (driver<int(uint64_t*, size_t)>("cuMemAlloc_v2")(&address, size ? size : 1) != 0) return status;
    memcpy(reinterpret_cast<void*>(address), *data, size);
    *data = reinterpret_cast<void*>(address);
    note("an output on the GPU");
    std::lock_guard<std::mutex> held(guard);
    outputs[value] = {address, context};
    return status;
}

void release_value(void* value) {
    Output output;
    {
        std::lock_guard<std::mutex> held(guard);
        auto found = outputs.find(value);
        if (found != outputs.end()) {
            output = found->second;
            outputs.erase(found);
        }
    }
    if (output.address) {
        void* before = nullptr;
        driver<int(void**)>("cuCtxGetCurrent")(&before);
        driver<int(void*)>("cuCtxSetCurrent")(output.context);
        driver<int(uint64_t)>("cuMemFree_v2")(output.address);
        driver<int(void*)>("cuCtxSetCurrent")(before);
    }
    the_true<void(void*)>(RELEASE_VALUE)(value);
}

Status run_with_binding(void* session, const void* options, const void* binding) {
    uintptr_t stream = 0;
    {
        std::lock_guard<std::mutex> held(guard);
        stream = streams[session];
    }
    if (stream) {
        auto synchronize = driver<int(uintptr_t)>("cuStreamSynchronize");
        note(synchronize && synchronize(stream) == 0 ? "run on the stream" : "run without a stream");
    }
    return the_true<Status(void*, const void*, const void*)>(RUN_WITH_BINDING)(session, options, binding);
}

const Function* get_api(uint32_t version) {
    true_api = truth->get_api(version);
    if (!true_api) return nullptr;
    memcpy(own_api, true_api, sizeof own_api);
    own_api[CREATE_SESSION] = reinterpret_cast<Function>(create_session);
    own_api[CREATE_MEMORY_INFO] = reinterpret_cast<Function>(create_memory_info);
    own_api[GET_TENSOR_MUTABLE_DATA] = reinterpret_cast<Function>(get_tensor_mutable_data);
    own_api[RELEASE_VALUE] = reinterpret_cast<Function>(release_value);
    own_api[GET_AVAILABLE_PROVIDERS] = reinterpret_cast<Function>(available);
    own_api[RELEASE_AVAILABLE_PROVIDERS] = reinterpret_cast<Function>(release_available);
    own_api[RUN_WITH_BINDING] = reinterpret_cast<Function>(run_with_binding);
    own_api[ADD_RUN_CONFIG_ENTRY] = reinterpret_cast<Function>(add_run_config_entry);
    own_api[APPEND_CUDA] = reinterpret_cast<Function>(append);
    own_api[CREATE_CUDA_OPTIONS] = reinterpret_cast<Function>(create_options);
    own_api[UPDATE_CUDA_OPTIONS] = reinterpret_cast<Function>(update_options);
    own_api[RELEASE_CUDA_OPTIONS] = reinterpret_cast<Function>(release_options);
    return own_api;
}

const char* get_version() { return truth->get_version(); }

}  // namespace

extern "C" const Base* OrtGetApiBase() {
    static const Base base = {get_api, get_version};
    void* library = dlopen(getenv("ORT_STANDIN_TRUTH"), RTLD_NOW | RTLD_LOCAL);
    if (!library) return nullptr;
    truth = reinterpret_cast<const Base* (*)()>(dlsym(library, "OrtGetApiBase"))();
    return &base;
}
