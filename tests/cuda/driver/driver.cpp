// The driver's start, devices, contexts, errors; and the accounts.
#include "driver.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

namespace standin {

namespace {

thread_local Context* current = nullptr;

long number(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text && *text ? std::atol(text) : otherwise;
}

struct Strike {
    std::string call;
    long number;
    Result result;
};

std::vector<Strike> strikes() {
    std::vector<Strike> all;
    const char* text = std::getenv("CUDA_STANDIN_FAIL");
    std::stringstream parts(text ? text : "");
    for (std::string part; std::getline(parts, part, ',');) {
        std::stringstream fields(part);
        std::string call, number, result;
        std::getline(fields, call, ':');
        std::getline(fields, number, ':');
        std::getline(fields, result, ':');
        all.push_back({call, std::atol(number.c_str()), std::atoi(result.c_str())});
    }
    return all;
}

std::string quoted(const std::string& text) {
    std::string all = "\"";
    for (const char each : text) {
        if (each == '"' || each == '\\') all += '\\';
        all += each;
    }
    return all + "\"";
}

std::string object(const std::map<std::string, long>& counts) {
    std::string all;
    for (const auto& [name, count] : counts) {
        all += (all.empty() ? "" : ", ") + quoted(name) + ": " + std::to_string(count);
    }
    return "{" + all + "}";
}

std::string report() {
    State& all = state();
    std::map<std::string, long> kinds;
    for (const char* name : {"streams", "events", "modules", "graphs", "contexts"}) kinds[name] = 0;
    for (void* handle : all.handles) {
        switch (*static_cast<Kind*>(handle)) {
            case Kind::Stream: kinds["streams"] += 1; break;
            case Kind::Event: kinds["events"] += 1; break;
            case Kind::Module: kinds["modules"] += 1; break;
            case Kind::Graph:
            case Kind::Executable: kinds["graphs"] += 1; break;
            default: break;
        }
    }
    for (const auto& device : all.devices) kinds["contexts"] += device->context.retained > 0;
    kinds["opened"] = 0;
    for (const auto& [address, each] : all.allocations) {
        kinds[each.origin == Origin::Opened ? "opened" : "allocations"] += 1;
    }
    kinds["allocations"] += 0;
    kinds["registered"] = static_cast<long>(all.registered.size());
    std::string faults;
    for (const std::string& each : all.faults) faults += (faults.empty() ? "" : ", ") + quoted(each);
    return "{\"live\": " + object(kinds) + ", \"calls\": " + object(all.calls) + ", \"launches\": " +
           object(all.launches) + ", \"opened\": " + object(all.opened) + ", \"pageable\": " +
           object(all.pageable) + ", \"faults\": [" + faults + "]}";
}

void write_report() {
    const char* path = std::getenv("CUDA_STANDIN_REPORT");
    if (!path) return;
    Lock lock(state().lock);
    if (!state().changed) return;
    state().changed = false;
    const std::string part = std::string(path) + ".part";
    std::ofstream(part) << report();
    std::rename(part.c_str(), path);
}

Result strike(const std::string& call, long seen) {
    static const std::vector<Strike> planned = strikes();
    for (const Strike& each : planned) {
        if (each.call == call && each.number == seen) return each.result;
    }
    return SUCCESS;
}

// What the driver's documentation of CUresult says needs a new process.
bool is_sticky(Result result) { return result >= 700 && result < 720 && (result < 704 || result > 713); }

__attribute__((destructor)) void end() { write_report(); }

}  // namespace

thread_local bool in_host_function = false;

State& state() {
    // Never destroyed: streams' threads may outlive main.
    static State* all = new State;
    return *all;
}

Result enter(const char* call, bool in_context) {
    State& all = state();
    Lock lock(all.lock);
    const long seen = all.calls[call]++;
    all.changed = true;
    if (in_host_function) return fault(std::string(call) + " within a host function", NOT_PERMITTED);
    if (all.lost) return all.lost;
    if (in_context && (!current || current->retained == 0)) {
        return fault(std::string(call) + " without a context", INVALID_CONTEXT);
    }
    const Result result = strike(call, seen);
    if (is_sticky(result)) lose(result);
    return result;
}

Result struck(const std::string& operation) {
    State& all = state();
    Lock lock(all.lock);
    const std::string name = operation + "@run";
    const Result result = strike(name, all.calls[name]++);
    return all.lost ? all.lost : result;
}

Result fault(const std::string& words, Result result) {
    Lock lock(state().lock);
    if (state().faults.size() < 100) state().faults.push_back(words);
    state().changed = true;
    return result;
}

void lose(Result result) {
    Lock lock(state().lock);
    if (!state().lost) state().lost = result;
    state().changed = true;
}

int current_device() { return current ? current->device : 0; }

void* known(void* handle, Kind kind, const char* call) {
    Lock lock(state().lock);
    if (state().handles.count(handle) && *static_cast<Kind*>(handle) == kind) return handle;
    fault(std::string(call) + " on a handle that is not there", INVALID_HANDLE);
    return nullptr;
}

void add(void* handle) {
    Lock lock(state().lock);
    state().handles.insert(handle);
}

void remove(void* handle) {
    Lock lock(state().lock);
    state().handles.erase(handle);
}

}  // namespace standin

using namespace standin;

DRIVER cuInit(unsigned) {
    ENTER_BARE();
    Lock lock(state().lock);
    if (state().begun) return SUCCESS;
    state().begun = true;
    state().memory = static_cast<std::size_t>(number("CUDA_STANDIN_MEMORY", 1L << 30));
    const long count = number("CUDA_STANDIN_DEVICES", 1);
    for (int index = 0; index < count; index += 1) {
        auto device = std::make_unique<Device>();
        device->context.device = index;
        device->pool_access.insert(index);
        state().devices.push_back(std::move(device));
    }
    if (std::getenv("CUDA_STANDIN_REPORT")) {
        std::thread([] {
            for (;;) {
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
                write_report();
            }
        }).detach();
    }
    return SUCCESS;
}

DRIVER cuDriverGetVersion(int* version) {
    *version = static_cast<int>(number("CUDA_STANDIN_VERSION", 13000));
    return SUCCESS;
}

DRIVER cuGetErrorString(Result result, const char** text) {
    static const std::map<Result, const char*> texts = {
        {SUCCESS, "no error"},
        {INVALID_VALUE, "invalid argument"},
        {OUT_OF_MEMORY, "out of memory"},
        {INVALID_DEVICE, "invalid device ordinal"},
        {INVALID_IMAGE, "device kernel image is invalid"},
        {INVALID_CONTEXT, "invalid device context"},
        {INVALID_HANDLE, "invalid resource handle"},
        {NOT_FOUND, "named symbol not found"},
        {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {LAUNCH_FAILED, "unspecified launch failure"},
    };
    const auto found = texts.find(result);
    *text = found == texts.end() ? "an error of the stand-in" : found->second;
    return SUCCESS;
}

DRIVER cuDeviceGetCount(int* count) {
    ENTER_BARE();
    *count = static_cast<int>(state().devices.size());
    return SUCCESS;
}

DRIVER cuDeviceGet(int* device, int ordinal) {
    ENTER_BARE();
    if (ordinal < 0 || ordinal >= static_cast<int>(state().devices.size())) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

DRIVER cuDeviceGetName(char* name, int len, int) {
    ENTER_BARE();
    std::snprintf(name, static_cast<std::size_t>(len), "stand-in");
    return SUCCESS;
}

DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER_BARE();
    constexpr int CAPABILITY_MAJOR = 75;
    *value = attribute == CAPABILITY_MAJOR ? 9 : 0;
    return SUCCESS;
}

DRIVER cuDeviceTotalMem_v2(std::size_t* bytes, int) {
    ENTER_BARE();
    *bytes = state().memory;
    return SUCCESS;
}

DRIVER cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER_BARE();
    Lock lock(state().lock);
    Context& own = state().devices[static_cast<std::size_t>(device)]->context;
    own.retained += 1;
    *context = &own;
    return SUCCESS;
}

DRIVER cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER_BARE();
    Lock lock(state().lock);
    Context& own = state().devices[static_cast<std::size_t>(device)]->context;
    if (own.retained == 0) return fault("a context released more often than retained", INVALID_CONTEXT);
    own.retained -= 1;
    if (own.retained > 0) return SUCCESS;
    for (const auto& [address, each] : state().allocations) {
        if (each.device == device) return fault("a context went before its memory", SUCCESS);
    }
    return SUCCESS;
}

DRIVER cuCtxSetCurrent(void* context) {
    // Nothing is lost by it, so a lost device takes it too: the call after it says so.
    Lock lock(state().lock);
    if (in_host_function) return fault("cuCtxSetCurrent within a host function", NOT_PERMITTED);
    current = static_cast<Context*>(context);
    return SUCCESS;
}

// Only memory that another process is to open is waited for so, and its copy has ended with its call here.
DRIVER cuCtxSynchronize() {
    ENTER();
    return SUCCESS;
}

DRIVER cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}

DRIVER cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

DRIVER cuDeviceCanAccessPeer(int* can, int device, int peer) {
    ENTER_BARE();
    *can = device != peer;
    return SUCCESS;
}

DRIVER cuCtxEnablePeerAccess(void* peer, unsigned) {
    ENTER();
    Lock lock(state().lock);
    auto& peers = state().devices[static_cast<std::size_t>(current_device())]->peers;
    return peers.insert(static_cast<Context*>(peer)->device).second ? SUCCESS : PEER_ACCESS_ALREADY_ENABLED;
}
