// Modules and launches. Any image stands for the kernels of `kernels/`, which are compiled into this
// library over their shim, save text that names another library of such kernels, as the stand-in for
// NVRTC gives it for PTX.
#include <dlfcn.h>

#include <cstring>

#include "../../../kernels/shim/cuda.h"
#include "driver.h"

namespace standin {

namespace {

constexpr char LIBRARY[] = "// stand-in library ";

using Entry = int (*)(const shim::Grid*, void**);
using Parameters = unsigned (*)(std::size_t*);

constexpr unsigned PARAMETERS_MAX = 32;
constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned SHARED_USUAL = 48 << 10;
constexpr int SHARED_MAX = 227 << 10;

struct Function {
    static constexpr Kind KIND = Kind::Function;
    Kind kind = KIND;
    std::string name;
    Entry entry = nullptr;
    std::vector<std::size_t> parameters;
    unsigned shared_max = SHARED_USUAL;
};

struct Module {
    static constexpr Kind KIND = Kind::Module;
    Kind kind = KIND;
    void* library = nullptr;
    std::vector<std::unique_ptr<Function>> functions;
};

// Copies of a launch's arguments, which the driver takes at the call.
struct Arguments {
    std::vector<std::vector<unsigned long long>> values;
    std::vector<void*> pointers;

    Arguments(const std::vector<std::size_t>& sizes, void** given) {
        for (std::size_t i = 0; i < sizes.size(); i += 1) {
            values.emplace_back((sizes[i] + 7) / 8);
            std::memcpy(values.back().data(), given[i], sizes[i]);
        }
        for (auto& value : values) pointers.push_back(value.data());
    }
};

}  // namespace
}  // namespace standin

using namespace standin;

DRIVER cuModuleLoadData(void** module, const void* image) {
    ENTER();
    auto made = std::make_unique<Module>();
    const char* text = static_cast<const char*>(image);
    if (std::strncmp(text, LIBRARY, sizeof LIBRARY - 1) == 0) {
        const std::string path(text + sizeof LIBRARY - 1, std::strcspn(text + sizeof LIBRARY - 1, "\n"));
        made->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!made->library) return fault(dlerror(), INVALID_IMAGE);
    } else {
        Dl_info self;
        dladdr(reinterpret_cast<void*>(&cuModuleLoadData), &self);
        made->library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    add(made.get());
    *module = made.release();
    return SUCCESS;
}

DRIVER cuModuleGetFunction(void** function, void* handle, const char* name) {
    ENTER();
    auto* module = known<Module>(handle, __func__);
    if (!module) return INVALID_HANDLE;
    auto made = std::make_unique<Function>();
    made->name = name;
    const std::string symbol(name);
    made->entry = reinterpret_cast<Entry>(dlsym(module->library, ("shim_" + symbol).c_str()));
    const void* sizes = dlsym(module->library, ("shim_parameters_" + symbol).c_str());
    if (!made->entry || !sizes) return NOT_FOUND;
    made->parameters.resize(PARAMETERS_MAX);
    made->parameters.resize(reinterpret_cast<Parameters>(const_cast<void*>(sizes))(made->parameters.data()));
    add(made.get());
    *function = made.get();
    module->functions.push_back(std::move(made));
    return SUCCESS;
}

DRIVER cuModuleUnload(void* handle) {
    ENTER();
    auto* module = known<Module>(handle, __func__);
    if (!module) return INVALID_HANDLE;
    for (const auto& function : module->functions) remove(function.get());
    remove(module);
    // The library stays: a launch of it may be under way on a GPU that has been told so.
    delete module;
    return SUCCESS;
}

DRIVER cuFuncSetAttribute(void* handle, int attribute, int value) {
    ENTER();
    auto* function = known<Function>(handle, __func__);
    if (!function) return INVALID_HANDLE;
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > SHARED_MAX) return INVALID_VALUE;
    function->shared_max = static_cast<unsigned>(value);
    return SUCCESS;
}

DRIVER cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                      void**) {
    ENTER();
    auto* function = known<Function>(handle, __func__);
    if (!function) return INVALID_HANDLE;
    const unsigned long long threads = 1ULL * block_x * block_y * block_z;
    if (!grid_x || !grid_y || !grid_z || !threads || threads > THREADS_MAX || grid_y > 65535 || grid_z > 65535 ||
        shared_bytes > function->shared_max) {
        return INVALID_VALUE;
    }
    const shim::Grid grid = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    const auto arguments = std::make_shared<Arguments>(function->parameters, parameters);
    const Entry entry = function->entry;
    const std::string name = function->name;
    return give(stream, __func__, [=] {
        {
            Lock lock(state().lock);
            state().launches[name] += 1;
            state().changed = true;
        }
        return entry(&grid, arguments->pointers.data()) == 0 ? SUCCESS : LAUNCH_FAILED;
    });
}
