// A stand-in for NVIDIA's driver library (libcuda.so.1) over the host's memory and threads, for tests
// on machines without a GPU. It shows in which order the driver is called, on what, and whether all is
// given back; it is no GPU: nothing here says how one behaves, how fast, or what its compiler makes of
// a kernel.
//
// Streams are threads, so what is not ordered by events or waits runs in any order. Pageable memory
// is copied as the driver documents it: from it at the call, into it before the call returns. Kernels
// are those of `kernels/`, compiled over their shim. What breaks the driver's rules (a handle that was
// destroyed, memory outside of an allocation, a call from within a host function) is counted as a
// fault with its words.
//
// Environment:
//   CUDA_STANDIN_REPORT   a file that is kept up to date with the accounts, as JSON
//   CUDA_STANDIN_DEVICES  how many GPUs there are (1)
//   CUDA_STANDIN_MEMORY   bytes of each (1 GiB)
//   CUDA_STANDIN_DELAY_US what a stream waits before each operation, at most (50)
//   CUDA_STANDIN_FAIL     CALL:NUMBER:ERROR, comma-separated: the call of that number, from 0, gives
//                         that error; with CALL@run the operation does when its stream comes to it
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

using Result = int;
using Address = unsigned long long;

constexpr Result SUCCESS = 0;
constexpr Result INVALID_VALUE = 1;
constexpr Result OUT_OF_MEMORY = 2;
constexpr Result INVALID_DEVICE = 101;
constexpr Result INVALID_IMAGE = 200;
constexpr Result INVALID_CONTEXT = 201;
constexpr Result PEER_ACCESS_UNSUPPORTED = 217;
constexpr Result INVALID_HANDLE = 400;
constexpr Result NOT_FOUND = 500;
constexpr Result NOT_READY = 600;
constexpr Result ILLEGAL_ADDRESS = 700;
constexpr Result PEER_ACCESS_ALREADY_ENABLED = 704;
constexpr Result HOST_MEMORY_ALREADY_REGISTERED = 712;
constexpr Result HOST_MEMORY_NOT_REGISTERED = 713;
constexpr Result LAUNCH_FAILED = 719;
constexpr Result NOT_PERMITTED = 800;
constexpr Result STREAM_CAPTURE_UNSUPPORTED = 900;

#define DRIVER extern "C" __attribute__((visibility("default"))) Result

namespace standin {

// What a handle of the driver's leads to. The magic tells its kind, or that it is gone.
enum class Kind : unsigned { Context = 0xc0de0001, Stream, Event, Module, Function, Graph, Executable, Pool };

struct Context {
    Kind kind = Kind::Context;
    int device;
    int retained = 0;
};

enum class Origin { Pool, Own, Opened };

struct Allocation {
    Address address;
    std::size_t bytes;
    int device;
    Origin origin;
    // What another process opens it by; -1 where it cannot be.
    int descriptor;
};

struct Device {
    Context context;
    Kind pool = Kind::Pool;
    std::size_t used = 0;
    // Devices that may touch memory of this one's pool, and those whose contexts are reached.
    std::set<int> pool_access, peers;
};

// All that is shared, behind one lock.
struct State {
    std::recursive_mutex lock;
    std::vector<std::unique_ptr<Device>> devices;
    std::size_t memory;
    bool begun = false;
    std::map<Address, Allocation> allocations;
    std::map<Address, std::size_t> registered;
    std::set<void*> handles;
    // Copies from and to memory of the host that is not registered are among the calls, and counted apart.
    std::map<std::string, long> calls, launches, opened, pageable;
    std::vector<std::string> faults;
    Result lost = SUCCESS;
    bool changed = true;
};

State& state();
using Lock = std::lock_guard<std::recursive_mutex>;

// Begins a call: counts it, and gives the error that it is to end with, if any.
Result enter(const char* call, bool in_context);
// The error that an operation of a call is to end with when it runs.
Result struck(const std::string& operation);
// Notes that the driver's rules were broken.
Result fault(const std::string& words, Result result);
// Nothing works from here on.
void lose(Result result);
// The device of the calling thread's context.
int current_device();

// A handle that is known, or nullptr and a fault.
void* known(void* handle, Kind kind, const char* call);
template <class T>
T* known(void* handle, const char* call) {
    return static_cast<T*>(known(handle, T::KIND, call));
}
void add(void* handle);
void remove(void* handle);

// Whether `bytes` from `address` on lie in one allocation that `device` may touch; a fault if not.
bool is_touchable(int device, Address address, std::size_t bytes, const char* what);
// Whether it is; a call of a copy for which it is not is counted.
bool is_pinned(const void* address, std::size_t bytes, const char* call);
// Whether the calling thread captures, so that calls which wait are not allowed.
bool is_capturing();
extern thread_local bool in_host_function;
// Notes a fault where the calling thread's mode of capture lets this call break another thread's capture.
void keep_out_of_captures(const char* call);

struct Stream;
using Operation = std::function<Result()>;
// Gives a stream an operation, or has its capture note it. `wait` has the caller wait for it.
Result give(void* stream, const char* call, Operation operation, bool wait = false);
int device_of(void* stream);

}  // namespace standin

// Begins a call, in a context or not.
#define ENTER()                                                                                    \
    if (const Result result = standin::enter(__func__, true)) return result
#define ENTER_BARE()                                                                               \
    if (const Result result = standin::enter(__func__, false)) return result
