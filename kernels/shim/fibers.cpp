// The shim's threads: fibers that one CPU thread runs in turn.
#include "cuda.h"

#include <ucontext.h>

#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr std::size_t STACK_BYTES = 64 << 10;

enum class State { Runnable, AtBlockBarrier, AtWarpBarrier, Finished };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    uint3 index;
    // What the fiber shows the other lanes of its warp.
    unsigned long long shown;
    unsigned mask;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<unsigned long long> shared;
    ucontext_t scheduler;
    std::size_t current;
    void (*body)(void*);
    void* arguments;
};

thread_local Block* block;

void trampoline() {
    block->body(block->arguments);
    block->fibers[block->current].state = State::Finished;
    swapcontext(&block->fibers[block->current].context, &block->scheduler);
}

void wait(State state) {
    Fiber& fiber = block->fibers[block->current];
    fiber.state = state;
    swapcontext(&fiber.context, &block->scheduler);
}

void warp_barrier(unsigned mask) {
    block->fibers[block->current].mask = mask;
    wait(State::AtWarpBarrier);
}

// Lets the warps go on whose lanes all wait for each other.
bool release_warps() {
    bool released = false;
    auto& fibers = block->fibers;
    for (std::size_t first = 0; first < fibers.size(); first += 32) {
        bool complete = false;
        for (std::size_t i = first; i < first + 32 && i < fibers.size(); i += 1) {
            if (fibers[i].state != State::AtWarpBarrier) continue;
            complete = true;
            for (unsigned lane = 0; lane < 32; lane += 1) {
                const bool named = fibers[i].mask >> lane & 1;
                const bool there = first + lane < fibers.size() &&
                                   fibers[first + lane].state == State::AtWarpBarrier;
                if (named && !there) complete = false;
            }
            if (!complete) break;
        }
        if (!complete) continue;
        released = true;
        for (std::size_t i = first; i < first + 32 && i < fibers.size(); i += 1) {
            if (fibers[i].state == State::AtWarpBarrier) fibers[i].state = State::Runnable;
        }
    }
    return released;
}

// Lets the block go on when all of its threads are at a barrier.
bool release_block() {
    for (const Fiber& fiber : block->fibers) {
        if (fiber.state != State::AtBlockBarrier) return false;
    }
    for (Fiber& fiber : block->fibers) fiber.state = State::Runnable;
    return true;
}

bool run_block(const Grid& grid) {
    for (auto& word : block->shared) word = std::numeric_limits<unsigned long long>::max();
    for (std::size_t i = 0; i < block->fibers.size(); i += 1) {
        Fiber& fiber = block->fibers[i];
        const unsigned at = static_cast<unsigned>(i);
        fiber.index = {at % grid.threads.x, at / grid.threads.x % grid.threads.y,
                       at / grid.threads.x / grid.threads.y};
        fiber.state = State::Runnable;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, trampoline, 0);
    }
    for (;;) {
        bool finished = true;
        for (std::size_t i = 0; i < block->fibers.size(); i += 1) {
            Fiber& fiber = block->fibers[i];
            if (fiber.state == State::Runnable) {
                block->current = i;
                threadIdx = fiber.index;
                swapcontext(&block->scheduler, &fiber.context);
            }
            finished = finished && fiber.state == State::Finished;
        }
        if (finished) return true;
        if (!release_warps() && !release_block()) return false;
    }
}

}  // namespace

void* dynamic_shared() { return block->shared.data(); }

void block_barrier() { wait(State::AtBlockBarrier); }

unsigned long long shuffle(unsigned mask, unsigned long long value, unsigned lane) {
    const std::size_t warp = block->current / 32 * 32;
    block->fibers[block->current].shown = value;
    warp_barrier(mask);
    const unsigned long long shown = block->fibers[warp + lane].shown;
    // Nobody shows something else before all have seen.
    warp_barrier(mask);
    return shown;
}

int run(const Grid& grid, void (*body)(void*), void* arguments) {
    Block here;
    here.fibers.resize(static_cast<std::size_t>(grid.threads.x) * grid.threads.y * grid.threads.z);
    for (Fiber& fiber : here.fibers) fiber.stack.reset(new char[STACK_BYTES]);
    here.shared.resize((grid.shared_bytes + 7) / 8);
    here.body = body;
    here.arguments = arguments;
    block = &here;
    blockDim = grid.threads;
    gridDim = grid.blocks;
    bool finished = true;
    for (unsigned z = 0; z < grid.blocks.z && finished; z += 1) {
        for (unsigned y = 0; y < grid.blocks.y && finished; y += 1) {
            for (unsigned x = 0; x < grid.blocks.x && finished; x += 1) {
                blockIdx = {x, y, z};
                finished = run_block(grid);
            }
        }
    }
    block = nullptr;
    return finished ? 0 : 1;
}

}  // namespace shim
