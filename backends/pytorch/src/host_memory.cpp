// Memory of the host for torch's tensors, kept when it is freed. The tensors between a module's layers come and go
// within each run: left to the C library, whose heaps of threads hold no more than 64 MiB each, the large ones get
// fresh pages every time, which cost a fifth of an image classifier's run.
//
// Memory is had in stretches, each a row of blocks, in use or free. A tensor gets the smallest free block that holds
// it, and what the block has too much stays free; a block that becomes free joins its free neighbours.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <mutex>
#include <set>

namespace {

// Of smaller blocks the C library keeps the pages.
constexpr size_t kBlock = 64 << 10;
constexpr size_t kStretch = 32 << 20;

// What stands before a tensor's memory; as long as the alignment of torch's own memory.
struct alignas(64) Block {
  // With this.
  size_t size;
  // Its neighbours in the stretch.
  Block* before = nullptr;
  Block* after = nullptr;
  bool is_free = false;
};

struct SmallerFirst {
  using is_transparent = void;
  bool operator()(const Block* one, const Block* other) const {
    return one->size != other->size ? one->size < other->size : one < other;
  }
  bool operator()(const Block* block, size_t size) const { return block->size < size; }
};

class KeptMemory final : public c10::Allocator {
 public:
  static KeptMemory& instance() {
    // Never destroyed: tensors may outlive what is destroyed when the process ends.
    static auto* memory = new KeptMemory;
    return *memory;
  }

  c10::DataPtr allocate(size_t wanted) override {
    void* data = wanted == 0 ? nullptr : take(wanted);
    return {data, data, &give_back, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  // Gives the stretches in which nothing is used back to the system.
  void empty() {
    std::lock_guard lock(mutex_);
    for (auto next = free_.begin(); next != free_.end();) {
      Block* block = *next++;
      if (is_whole(block)) end(block);
    }
    used_max_ = used_;
  }

 private:
  void* take(size_t wanted) {
    // Torch's own function refuses it, and says how much it was.
    if (wanted > PTRDIFF_MAX - kStretch) return c10::alloc_cpu(wanted);
    size_t size = (wanted + 2 * sizeof(Block) - 1) / sizeof(Block) * sizeof(Block);
    if (size < kBlock) return new (c10::alloc_cpu(size)) Block{size} + 1;
    std::lock_guard lock(mutex_);
    auto found = free_.lower_bound(size);
    Block* block = found == free_.end() ? begin(size) : *found;
    free_.erase(block);
    block->is_free = false;
    if (block->size - size >= kBlock) split(block, size);
    used_ += block->size;
    used_max_ = std::max(used_max_, used_);
    return block + 1;
  }

  static void give_back(void* data) {
    if (data == nullptr) return;
    Block* block = static_cast<Block*>(data) - 1;
    if (block->size < kBlock) return c10::free_cpu(block);
    instance().keep(block);
  }

  void keep(Block* block) {
    std::lock_guard lock(mutex_);
    used_ -= block->size;
    block->is_free = true;
    if (block->after != nullptr && block->after->is_free) join(block);
    if (block->before != nullptr && block->before->is_free) {
      block = block->before;
      free_.erase(block);
      join(block);
    }
    free_.insert(block);
    // Free blocks lie between others, so that not all of them can be used.
    if (is_whole(block) && held_ - used_ > 2 * used_max_) end(block);
  }

  // A new stretch with a block of at least that size.
  Block* begin(size_t size) {
    size = std::max(size, kStretch);
    auto* block = new (c10::alloc_cpu(size)) Block{size};
    held_ += size;
    return block;
  }

  void end(Block* block) {
    free_.erase(block);
    held_ -= block->size;
    c10::free_cpu(block);
  }

  static bool is_whole(const Block* block) { return block->before == nullptr && block->after == nullptr; }

  void split(Block* block, size_t size) {
    auto* rest = new (reinterpret_cast<char*>(block) + size) Block{block->size - size, block, block->after, true};
    if (rest->after != nullptr) rest->after->before = rest;
    block->after = rest;
    block->size = size;
    free_.insert(rest);
  }

  // Makes a block and the free one behind it one.
  void join(Block* block) {
    Block* behind = block->after;
    free_.erase(behind);
    block->size += behind->size;
    block->after = behind->after;
    if (block->after != nullptr) block->after->before = block;
  }

  std::mutex mutex_;
  std::set<Block*, SmallerFirst> free_;
  // The bytes of all stretches, and of the blocks in use.
  size_t held_ = 0;
  size_t used_ = 0;
  size_t used_max_ = 0;
};

}  // namespace

extern "C" {

// From now on tensors on the host are of memory that is kept.
void nereid_torch_keep_host_memory() { c10::SetCPUAllocator(&KeptMemory::instance()); }

void nereid_torch_empty_host_memory() { KeptMemory::instance().empty(); }

}  // extern "C"
