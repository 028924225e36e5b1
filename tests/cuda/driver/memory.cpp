// Memory: of the pools, of its own that other processes may open, and the host's that is registered.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "driver.h"

using namespace standin;

namespace {

constexpr char MAGIC[8] = {'s', 't', 'a', 'n', 'd', 'i', 'n', 0};
// No number, in floating point: what is read before it is written shows.
constexpr int UNWRITTEN = 0xff;

// What the 64 bytes of a handle say.
struct Shared {
    char magic[8];
    int process, descriptor, device;
    std::size_t bytes;
    unsigned long long inode;
};

struct Handle {
    char bytes[64];
};

Device& device(int index) { return *state().devices[static_cast<std::size_t>(index)]; }

void* map(std::size_t bytes, int descriptor) {
    const int flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0);
}

Result allocate(Address* address, std::size_t bytes, Origin origin) {
    Lock lock(state().lock);
    Device& own = device(current_device());
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > state().memory - own.used) return OUT_OF_MEMORY;
    int descriptor = -1;
    if (origin == Origin::Own) {
        descriptor = static_cast<int>(syscall(SYS_memfd_create, "cuda", 0));
        if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) return OUT_OF_MEMORY;
    }
    void* memory = map(bytes, descriptor);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    std::memset(memory, UNWRITTEN, bytes);
    *address = reinterpret_cast<Address>(memory);
    own.used += bytes;
    state().allocations[*address] = {*address, bytes, current_device(), origin, descriptor};
    return SUCCESS;
}

Result release(Address address, Origin origin, const char* call) {
    Lock lock(state().lock);
    const auto found = state().allocations.find(address);
    if (found == state().allocations.end() || found->second.origin != origin) {
        return fault(std::string(call) + " of memory that is not there", INVALID_VALUE);
    }
    const Allocation gone = found->second;
    state().allocations.erase(found);
    state().changed = true;
    if (origin == Origin::Own) device(gone.device).used -= gone.bytes;
    // Whoever touches it now ends: no other memory is put there unseen.
    munmap(reinterpret_cast<void*>(address), gone.bytes);
    if (gone.descriptor >= 0) close(gone.descriptor);
    return SUCCESS;
}

const Allocation* around(Address address, std::size_t bytes) {
    auto next = state().allocations.upper_bound(address);
    if (next == state().allocations.begin()) return nullptr;
    const Allocation& found = std::prev(next)->second;
    const bool is_inside = address - found.address <= found.bytes && bytes <= found.bytes - (address - found.address);
    return is_inside ? &found : nullptr;
}

}  // namespace

namespace standin {

bool is_touchable(int toucher, Address address, std::size_t bytes, const char* what) {
    Lock lock(state().lock);
    const Allocation* found = around(address, bytes);
    if (!found) {
        fault(std::string(what) + " outside of any allocation", ILLEGAL_ADDRESS);
        return false;
    }
    const bool by_pool = device(found->device).pool_access.count(toucher);
    const bool by_peer = device(toucher).peers.count(found->device);
    const bool may = found->device == toucher || (found->origin == Origin::Pool ? by_pool : by_peer);
    if (!may) fault(std::string(what) + " of another device's memory", ILLEGAL_ADDRESS);
    return may;
}

bool is_pinned(const void* address, std::size_t bytes, const char* call) {
    Lock lock(state().lock);
    const Address first = reinterpret_cast<Address>(address);
    for (const auto& [start, len] : state().registered) {
        if (first >= start && first - start <= len && bytes <= len - (first - start)) return true;
    }
    state().pageable[call] += 1;
    state().changed = true;
    return false;
}

}  // namespace standin

DRIVER cuMemAlloc_v2(Address* address, std::size_t bytes) {
    ENTER();
    if (is_capturing()) return fault("cuMemAlloc during a capture", STREAM_CAPTURE_UNSUPPORTED);
    return allocate(address, bytes, Origin::Own);
}

DRIVER cuMemFree_v2(Address address) {
    ENTER();
    if (is_capturing()) return fault("cuMemFree during a capture", STREAM_CAPTURE_UNSUPPORTED);
    return release(address, Origin::Own, __func__);
}

DRIVER cuMemAllocAsync(Address* address, std::size_t bytes, void* stream) {
    ENTER();
    keep_out_of_captures(__func__);
    if (const Result result = allocate(address, bytes, Origin::Pool)) return result;
    return give(stream, __func__, [] { return SUCCESS; });
}

DRIVER cuMemFreeAsync(Address address, void* stream) {
    ENTER();
    {
        // What its stream allocates from here on may have the memory.
        Lock lock(state().lock);
        const auto found = state().allocations.find(address);
        if (found != state().allocations.end()) device(found->second.device).used -= found->second.bytes;
    }
    return give(stream, __func__, [address] { return release(address, Origin::Pool, "cuMemFreeAsync"); });
}

DRIVER cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    ENTER();
    Lock lock(state().lock);
    *total = state().memory;
    *free = state().memory - device(current_device()).used;
    return SUCCESS;
}

DRIVER cuMemGetAddressRange_v2(Address* base, std::size_t* bytes, Address address) {
    ENTER();
    Lock lock(state().lock);
    const Allocation* found = around(address, 0);
    if (!found) return NOT_FOUND;
    if (base) *base = found->address;
    if (bytes) *bytes = found->bytes;
    return SUCCESS;
}

DRIVER cuMemcpyHtoD_v2(Address to, const void* from, std::size_t bytes) {
    ENTER();
    if (!is_touchable(current_device(), to, bytes, __func__)) return INVALID_VALUE;
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}

DRIVER cuMemcpyDtoH_v2(void* to, Address from, std::size_t bytes) {
    ENTER();
    if (!is_touchable(current_device(), from, bytes, __func__)) return INVALID_VALUE;
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}

DRIVER cuDeviceGetDefaultMemPool(void** pool, int index) {
    ENTER_BARE();
    *pool = &device(index).pool;
    return SUCCESS;
}

DRIVER cuMemPoolSetAttribute(void*, int, void*) {
    ENTER_BARE();
    return SUCCESS;
}

struct AccessDescription {
    int kind, device, flags;
};

DRIVER cuMemPoolSetAccess(void* pool, const AccessDescription* description, std::size_t count) {
    ENTER_BARE();
    Lock lock(state().lock);
    for (auto& each : state().devices) {
        if (&each->pool != pool) continue;
        for (std::size_t i = 0; i < count; i += 1) each->pool_access.insert(description[i].device);
        return SUCCESS;
    }
    return fault("cuMemPoolSetAccess on no pool", INVALID_VALUE);
}

DRIVER cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned) {
    ENTER();
    keep_out_of_captures(__func__);
    Lock lock(state().lock);
    const Address address = reinterpret_cast<Address>(memory);
    return state().registered.emplace(address, bytes).second ? SUCCESS : HOST_MEMORY_ALREADY_REGISTERED;
}

DRIVER cuMemHostUnregister(void* memory) {
    ENTER();
    Lock lock(state().lock);
    if (state().registered.erase(reinterpret_cast<Address>(memory))) return SUCCESS;
    return fault("cuMemHostUnregister of memory that is not registered", HOST_MEMORY_NOT_REGISTERED);
}

DRIVER cuIpcGetMemHandle(Handle* handle, Address address) {
    ENTER();
    Lock lock(state().lock);
    const Allocation* found = around(address, 0);
    if (!found || found->descriptor < 0) return INVALID_VALUE;
    struct stat status;
    fstat(found->descriptor, &status);
    Shared shared = {{}, getpid(), found->descriptor, found->device, found->bytes, status.st_ino};
    std::memcpy(shared.magic, MAGIC, sizeof MAGIC);
    *handle = {};
    std::memcpy(handle, &shared, sizeof shared);
    return SUCCESS;
}

DRIVER cuIpcOpenMemHandle_v2(Address* address, Handle handle, unsigned) {
    ENTER();
    keep_out_of_captures(__func__);
    Lock lock(state().lock);
    Shared shared;
    std::memcpy(&shared, &handle, sizeof shared);
    if (std::memcmp(shared.magic, MAGIC, sizeof MAGIC) != 0) return INVALID_VALUE;
    if (shared.process == getpid()) return INVALID_CONTEXT;
    // Its owner's copy of the descriptor, as long as that process lives.
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", shared.process, shared.descriptor);
    const int descriptor = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0) return INVALID_HANDLE;
    const bool is_it = fstat(descriptor, &status) == 0 && status.st_ino == shared.inode;
    void* memory = is_it ? map(shared.bytes, descriptor) : MAP_FAILED;
    close(descriptor);
    if (memory == MAP_FAILED) return INVALID_HANDLE;
    *address = reinterpret_cast<Address>(memory);
    state().allocations[*address] = {*address, shared.bytes, current_device(), Origin::Opened, -1};
    state().opened[std::to_string(shared.process) + "/" + std::to_string(shared.inode)] += 1;
    return SUCCESS;
}

DRIVER cuIpcCloseMemHandle(Address address) {
    ENTER();
    return release(address, Origin::Opened, __func__);
}
