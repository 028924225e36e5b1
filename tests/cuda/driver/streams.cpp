// Streams, each a thread; events, host functions, copies, captures and graphs.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <utility>

#include "driver.h"

namespace standin {

struct Step {
    std::string call;
    Operation operation;
};

struct Graph {
    static constexpr Kind KIND = Kind::Graph;
    Kind kind = KIND;
    std::vector<Step> steps;
};

struct Executable {
    static constexpr Kind KIND = Kind::Executable;
    Kind kind = KIND;
    std::vector<Step> steps;
};

// How far an event has come; kept by operations that wait for it.
struct Marks {
    std::mutex lock;
    std::condition_variable passed_one;
    long recorded = 0, passed = 0;
    std::chrono::steady_clock::time_point when;
};

struct Event {
    static constexpr Kind KIND = Kind::Event;
    Kind kind = KIND;
    bool has_time = true;
    std::shared_ptr<Marks> marks = std::make_shared<Marks>();
};

struct Queue {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<Step> steps;
    bool busy = false, ended = false;
};

struct Stream {
    static constexpr Kind KIND = Kind::Stream;
    Kind kind = KIND;
    int device = 0;
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();
    Graph* capture = nullptr;
    bool capture_failed = false;
};

namespace {

thread_local int captures = 0;
// The driver's modes of capture: 0 is global, which every thread begins with.
thread_local int capture_mode = 0;

bool is_lost() {
    Lock lock(state().lock);
    return state().lost != SUCCESS;
}

void linger() {
    static const long most = std::getenv("CUDA_STANDIN_DELAY_US") ? std::atol(std::getenv("CUDA_STANDIN_DELAY_US")) : 50;
    thread_local std::minstd_rand random(static_cast<unsigned>(std::hash<std::thread::id>()(std::this_thread::get_id())));
    if (most > 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<unsigned long>(most + 1)));
}

void perform(const Step& step) {
    Result result = struck(step.call);
    if (!result) result = step.operation();
    // What goes wrong in a stream is an error of the context, which no call takes back.
    if (result) lose(result);
}

void run(const std::shared_ptr<Queue>& queue) {
    std::unique_lock<std::mutex> lock(queue->lock);
    for (;;) {
        queue->changed.wait(lock, [&] { return !queue->steps.empty() || queue->ended; });
        if (queue->steps.empty()) return;
        Step step = std::move(queue->steps.front());
        queue->steps.pop_front();
        queue->busy = true;
        lock.unlock();
        // A lost device runs nothing and calls nobody.
        if (!is_lost()) {
            linger();
            perform(step);
        }
        step = {};
        lock.lock();
        queue->busy = false;
        queue->changed.notify_all();
    }
}

Result drain(Queue& queue) {
    std::unique_lock<std::mutex> lock(queue.lock);
    queue.changed.wait(lock, [&] { return queue.steps.empty() && !queue.busy; });
    lock.unlock();
    Lock all(state().lock);
    return state().lost;
}

Result create(void** stream) {
    auto* made = new Stream;
    made->device = current_device();
    std::thread(run, made->queue).detach();
    add(made);
    *stream = made;
    return SUCCESS;
}

}  // namespace

bool is_capturing() { return captures > 0; }

void keep_out_of_captures(const char* call) {
    if (capture_mode == 0) fault(std::string(call) + " could break a capture of another thread", SUCCESS);
}

int device_of(void* stream) { return static_cast<Stream*>(stream)->device; }

Result give(void* handle, const char* call, Operation operation, bool wait) {
    auto* stream = known<Stream>(handle, call);
    if (!stream) return INVALID_HANDLE;
    if (stream->device != current_device()) {
        return fault(std::string(call) + " on a stream of another context", INVALID_HANDLE);
    }
    if (stream->capture) {
        if (wait) {
            stream->capture_failed = true;
            return fault(std::string(call) + " waits during a capture", STREAM_CAPTURE_UNSUPPORTED);
        }
        stream->capture->steps.push_back({call, std::move(operation)});
        return SUCCESS;
    }
    {
        std::lock_guard<std::mutex> lock(stream->queue->lock);
        stream->queue->steps.push_back({call, std::move(operation)});
        stream->queue->changed.notify_all();
    }
    return wait ? drain(*stream->queue) : SUCCESS;
}

}  // namespace standin

using namespace standin;

DRIVER cuStreamCreate(void** stream, unsigned) {
    ENTER();
    return create(stream);
}

DRIVER cuStreamCreateWithPriority(void** stream, unsigned, int) {
    ENTER();
    return create(stream);
}

DRIVER cuStreamDestroy_v2(void* handle) {
    ENTER();
    auto* stream = known<Stream>(handle, __func__);
    if (!stream) return INVALID_HANDLE;
    {
        // What it was given still runs.
        std::lock_guard<std::mutex> lock(stream->queue->lock);
        stream->queue->ended = true;
        stream->queue->changed.notify_all();
    }
    remove(stream);
    delete stream;
    return SUCCESS;
}

DRIVER cuThreadExchangeStreamCaptureMode(int* mode) {
    ENTER();
    std::swap(*mode, capture_mode);
    return SUCCESS;
}

DRIVER cuStreamSynchronize(void* handle) {
    ENTER();
    keep_out_of_captures(__func__);
    auto* stream = known<Stream>(handle, __func__);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return fault("cuStreamSynchronize during a capture", STREAM_CAPTURE_UNSUPPORTED);
    return drain(*stream->queue);
}

DRIVER cuEventCreate(void** event, unsigned flags) {
    ENTER();
    constexpr unsigned DISABLE_TIMING = 2;
    auto* made = new Event;
    made->has_time = !(flags & DISABLE_TIMING);
    add(made);
    *event = made;
    return SUCCESS;
}

DRIVER cuEventDestroy_v2(void* handle) {
    ENTER();
    auto* event = known<Event>(handle, __func__);
    if (!event) return INVALID_HANDLE;
    remove(event);
    delete event;
    return SUCCESS;
}

DRIVER cuEventRecord(void* handle, void* stream) {
    ENTER();
    auto* event = known<Event>(handle, __func__);
    if (!event) return INVALID_HANDLE;
    const auto marks = event->marks;
    long number;
    {
        std::lock_guard<std::mutex> lock(marks->lock);
        number = ++marks->recorded;
    }
    return give(stream, __func__, [marks, number] {
        std::lock_guard<std::mutex> lock(marks->lock);
        marks->passed = std::max(marks->passed, number);
        marks->when = std::chrono::steady_clock::now();
        marks->passed_one.notify_all();
        return SUCCESS;
    });
}

DRIVER cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    ENTER();
    auto* event = known<Event>(handle, __func__);
    if (!event) return INVALID_HANDLE;
    const auto marks = event->marks;
    std::unique_lock<std::mutex> lock(marks->lock);
    const long number = marks->recorded;
    lock.unlock();
    return give(stream, __func__, [marks, number] {
        std::unique_lock<std::mutex> lock(marks->lock);
        while (marks->passed < number && !is_lost()) {
            marks->passed_one.wait_for(lock, std::chrono::milliseconds(5));
        }
        return SUCCESS;
    });
}

DRIVER cuEventQuery(void* handle) {
    ENTER();
    keep_out_of_captures(__func__);
    auto* event = known<Event>(handle, __func__);
    if (!event) return INVALID_HANDLE;
    std::lock_guard<std::mutex> lock(event->marks->lock);
    return event->marks->passed < event->marks->recorded ? NOT_READY : SUCCESS;
}

DRIVER cuEventElapsedTime_v2(float* milliseconds, void* first, void* second) {
    ENTER();
    auto* begun = known<Event>(first, __func__);
    auto* ended = known<Event>(second, __func__);
    if (!begun || !ended) return INVALID_HANDLE;
    if (!begun->has_time || !ended->has_time) return fault("cuEventElapsedTime without timing", INVALID_HANDLE);
    std::scoped_lock lock(begun->marks->lock, ended->marks->lock);
    if (!begun->marks->recorded || !ended->marks->recorded) {
        return fault("cuEventElapsedTime of an event that was not recorded", INVALID_HANDLE);
    }
    if (begun->marks->passed < begun->marks->recorded || ended->marks->passed < ended->marks->recorded) {
        return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(ended->marks->when - begun->marks->when).count();
    return SUCCESS;
}

DRIVER cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    ENTER();
    return give(stream, __func__, [function, data] {
        in_host_function = true;
        function(data);
        in_host_function = false;
        return SUCCESS;
    });
}

DRIVER cuMemcpyHtoDAsync_v2(Address to, const void* from, std::size_t bytes, void* stream) {
    ENTER();
    const int device = current_device();
    std::vector<char> staged;
    if (!is_pinned(from, bytes, __func__)) {
        const char* first = static_cast<const char*>(from);
        staged.assign(first, first + bytes);
    }
    return give(stream, __func__, [=, staged = std::move(staged)] {
        if (!is_touchable(device, to, bytes, "cuMemcpyHtoDAsync")) return ILLEGAL_ADDRESS;
        std::memcpy(reinterpret_cast<void*>(to), staged.empty() ? from : staged.data(), bytes);
        return SUCCESS;
    });
}

DRIVER cuMemcpyDtoHAsync_v2(void* to, Address from, std::size_t bytes, void* stream) {
    ENTER();
    const int device = current_device();
    const auto copy = [=] {
        if (!is_touchable(device, from, bytes, "cuMemcpyDtoHAsync")) return ILLEGAL_ADDRESS;
        std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
        return SUCCESS;
    };
    return give(stream, __func__, copy, !is_pinned(to, bytes, __func__));
}

DRIVER cuMemcpyDtoDAsync_v2(Address to, Address from, std::size_t bytes, void* stream) {
    ENTER();
    const int device = current_device();
    return give(stream, __func__, [=] {
        const bool may = is_touchable(device, to, bytes, "cuMemcpyDtoDAsync") &&
                         is_touchable(device, from, bytes, "cuMemcpyDtoDAsync");
        if (!may) return ILLEGAL_ADDRESS;
        std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        return SUCCESS;
    });
}

DRIVER cuMemsetD8Async(Address to, unsigned char value, std::size_t bytes, void* stream) {
    ENTER();
    const int device = current_device();
    return give(stream, __func__, [=] {
        if (!is_touchable(device, to, bytes, "cuMemsetD8Async")) return ILLEGAL_ADDRESS;
        std::memset(reinterpret_cast<void*>(to), value, bytes);
        return SUCCESS;
    });
}

DRIVER cuStreamBeginCapture_v2(void* handle, int) {
    ENTER();
    auto* stream = known<Stream>(handle, __func__);
    if (!stream || stream->capture) return INVALID_HANDLE;
    stream->capture = new Graph;
    stream->capture_failed = false;
    captures += 1;
    return SUCCESS;
}

DRIVER cuStreamEndCapture(void* handle, void** graph) {
    ENTER();
    auto* stream = known<Stream>(handle, __func__);
    if (!stream || !stream->capture) return INVALID_HANDLE;
    Graph* captured = std::exchange(stream->capture, nullptr);
    captures -= 1;
    if (stream->capture_failed) {
        delete captured;
        *graph = nullptr;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    add(captured);
    *graph = captured;
    return SUCCESS;
}

DRIVER cuGraphInstantiateWithFlags(void** executable, void* handle, unsigned long long) {
    ENTER();
    auto* graph = known<Graph>(handle, __func__);
    if (!graph) return INVALID_HANDLE;
    auto* made = new Executable;
    made->steps = graph->steps;
    add(made);
    *executable = made;
    return SUCCESS;
}

DRIVER cuGraphDestroy(void* handle) {
    ENTER();
    auto* graph = known<Graph>(handle, __func__);
    if (!graph) return INVALID_HANDLE;
    remove(graph);
    delete graph;
    return SUCCESS;
}

DRIVER cuGraphExecDestroy(void* handle) {
    ENTER();
    auto* executable = known<Executable>(handle, __func__);
    if (!executable) return INVALID_HANDLE;
    remove(executable);
    delete executable;
    return SUCCESS;
}

DRIVER cuGraphLaunch(void* handle, void* stream) {
    ENTER();
    auto* executable = known<Executable>(handle, __func__);
    if (!executable) return INVALID_HANDLE;
    return give(stream, __func__, [steps = executable->steps] {
        for (const Step& step : steps) {
            if (const Result result = step.operation()) return result;
        }
        return SUCCESS;
    });
}
