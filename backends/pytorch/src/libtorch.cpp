// What the back end needs of libtorch and tch does not offer: what `forward` takes and returns, tensors over memory
// with an owner, inference mode, the current stream, the memory of GPUs.
//
// Every function that can fail returns a message that the caller frees, or null.

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "libtorch.h"

namespace {

// As in table.rs, like the two types that follow.
struct Text {
  const char* data;
  size_t len;
};

struct Value {
  Text name;
  uint32_t kind;
  int32_t element;
  const void* data;
  size_t len;
  const int64_t* dims;
  size_t rank;
  void* owner;
  void (*release)(void*);
};

struct TableResults {
  const Value* data;
  size_t len;
  bool dictionary;
};

struct Result {
  std::string name;
  Kind kind = kOther;
  at::Tensor tensor;
  // Strings, each behind its length; of what cannot be sent, the type.
  std::string text;
  int64_t count = 0;
};

// What a `forward` returned.
struct Results {
  // First, so that a pointer to one is a pointer to the other.
  TableResults table{};
  std::vector<Value> values;
  std::vector<Result> list;
};

Result other(std::string type) {
  Result result;
  result.text = std::move(type);
  return result;
}

Result result_of(const c10::IValue& value) {
  Result result;
  if (value.isTensor()) {
    const auto& tensor = value.toTensor();
    // Also undefined ones, which have no layout.
    if (!tensor.defined() || tensor.layout() != at::kStrided || tensor.is_nested()) {
      return other("Tensor that is not dense");
    }
    result.kind = kTensor;
    result.tensor = tensor;
  } else if (value.isList() && kind_of(value.type()) == kStrings) {
    result.kind = kStrings;
    for (const c10::IValue& each : value.toListRef()) {
      const auto& text = each.toStringRef();
      TORCH_CHECK(text.size() <= UINT32_MAX, "a string of ", text.size(), " bytes is too long to be sent");
      auto len = static_cast<uint32_t>(text.size());
      result.text.append(reinterpret_cast<const char*>(&len), sizeof len);
      result.text.append(text);
      ++result.count;
    }
  } else {
    return other(value.isNone() ? "None" : value.type()->annotation_str());
  }
  return result;
}

// One result, or those in a tuple, list or dictionary.
void take_apart(const c10::IValue& returned, Results& results) {
  results.table.dictionary = returned.isGenericDict();
  if (returned.isTuple()) {
    for (const auto& each : returned.toTupleRef().elements()) results.list.push_back(result_of(each));
  } else if (returned.isTensorList()) {
    for (const c10::IValue& each : returned.toListRef()) results.list.push_back(result_of(each));
  } else if (returned.isGenericDict()) {
    for (const auto& entry : returned.toGenericDict()) {
      if (!entry.key().isString()) {
        results.list.push_back(other("Dict without strings for keys"));
        continue;
      }
      results.list.push_back(result_of(entry.value()));
      results.list.back().name = entry.key().toStringRef();
    }
  } else {
    results.list.push_back(result_of(returned));
  }
}

// A tensor in order, on a GPU, where the next run's work comes behind whatever reads it; or on the host, in memory that
// nothing else refers to: what a module keeps or hands out twice it may write on its next run.
at::Tensor own(at::Tensor given, int gpu) {
  if (gpu >= 0) return given.to(c10::Device(c10::kCUDA, gpu)).resolve_conj().resolve_neg().contiguous();
  auto own = given.to(at::kCPU).resolve_conj().resolve_neg().contiguous();
  given.reset();
  return own.use_count() > 1 || own.storage().use_count() > 1 ? own.clone() : own;
}

Value value_of(const Result& result) {
  Value value{};
  value.name = {result.name.data(), result.name.size()};
  value.kind = result.kind;
  value.release = [](void*) {};
  if (result.kind == kTensor) {
    value.element = static_cast<int32_t>(result.tensor.scalar_type());
    value.data = result.tensor.const_data_ptr();
    value.len = result.tensor.nbytes();
    value.dims = result.tensor.sizes().data();
    value.rank = result.tensor.dim();
    return value;
  }
  value.data = result.text.data();
  value.len = result.text.size();
  if (result.kind == kStrings) {
    value.dims = &result.count;
    value.rank = 1;
  }
  return value;
}

}  // namespace

extern "C" {

// A module whose tensors lie on the host, on a GPU or where they were saved, by the numbers of `Options::device`.
char* nereid_torch_load(const char* path, int place, torch::jit::Module** module) {
  return message_of([&] {
    std::optional<c10::Device> device;
    if (place == -1) device = c10::Device(c10::kCPU);
    if (place >= 0) device = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(place));
    *module = new torch::jit::Module(torch::jit::load(path, device));
  });
}

// Calls `forward`, which takes the arguments out of their places.
char* nereid_torch_forward(torch::jit::Module* module, c10::IValue* const* arguments, size_t count, int gpu,
                           Results** results) {
  return message_of([&] {
    std::vector<c10::IValue> stack;
    stack.reserve(count);
    for (size_t index = 0; index < count; ++index) stack.push_back(std::exchange(*arguments[index], c10::IValue()));
    auto returned = module->forward(std::move(stack));
    auto found = std::make_unique<Results>();
    take_apart(returned, *found);
    // Whatever nothing else keeps is then the results' alone.
    returned = c10::IValue();
    for (auto& result : found->list) {
      if (result.kind == kTensor) result.tensor = own(std::move(result.tensor), gpu);
    }
    for (const auto& result : found->list) found->values.push_back(value_of(result));
    found->table.data = found->values.data();
    found->table.len = found->values.size();
    *results = found.release();
  });
}

void nereid_torch_free_results(Results* results) { delete results; }

char* nereid_torch_strings(const Text* texts, size_t count, c10::IValue** list) {
  return message_of([&] {
    c10::List<std::string> strings;
    strings.reserve(count);
    for (size_t index = 0; index < count; ++index) strings.push_back(std::string(texts[index].data, texts[index].len));
    *list = new c10::IValue(std::move(strings));
  });
}

char* nereid_torch_dictionary(const Text* names, const at::Tensor* const* tensors, size_t count,
                              c10::IValue** dictionary) {
  return message_of([&] {
    c10::Dict<std::string, at::Tensor> entries;
    for (size_t index = 0; index < count; ++index) {
      entries.insert(std::string(names[index].data, names[index].len), *tensors[index]);
    }
    *dictionary = new c10::IValue(std::move(entries));
  });
}

// A tensor over memory of a GPU, or of the host where there is none, that stays until `release` is called with
// `owner`, which happens in any case; or a copy of it.
char* nereid_torch_tensor(const void* data, const int64_t* dims, size_t rank, int element, int gpu, bool copied,
                          void* owner, void (*release)(void*), at::Tensor** tensor) {
  std::shared_ptr<void> kept(owner, release);
  return message_of([&] {
    auto options = at::TensorOptions().dtype(static_cast<c10::ScalarType>(element));
    auto device = gpu < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, gpu);
    auto deleter = [kept](void*) {};
    auto over = at::from_blob(const_cast<void*>(data), c10::IntArrayRef(dims, rank), deleter, options.device(device),
                              device);
    *tensor = new at::Tensor(copied ? over.clone() : std::move(over));
  });
}

int nereid_torch_gpu_count() {
  try {
    return at::hasCUDA() ? c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount() : 0;
  } catch (const std::exception&) {
    return 0;
  }
}

// The settings of one run on this thread; `nereid_torch_leave` ends it.
void* nereid_torch_enter(bool inference_mode) { return new c10::InferenceMode(inference_mode); }

void nereid_torch_leave(void* mode) { delete static_cast<c10::InferenceMode*>(mode); }

void nereid_torch_set_executor(bool enabled) { torch::jit::getExecutorMode() = enabled; }

void nereid_torch_set_cudnn(bool enabled) { at::globalContext().setUserEnabledCuDNN(enabled); }

// A stream of torch's own pool on a GPU.
char* nereid_torch_new_stream(int gpu, c10::StreamId* stream) {
  return message_of([&] {
    c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    *stream = cuda.getStreamFromGlobalPool(c10::Device(c10::kCUDA, gpu)).id();
  });
}

// Makes the stream, and its GPU, the current ones of this thread. Torch numbers a stream that it has not made by its
// CUDA handle.
char* nereid_torch_use_stream(int gpu, c10::StreamId stream) {
  return message_of([&] {
    c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    c10::Device device(c10::kCUDA, gpu);
    cuda.setDevice(device);
    cuda.exchangeStream(c10::Stream(c10::Stream::UNSAFE, device, stream));
  });
}

// What the caching allocator holds of a GPU's memory, and what of that tensors take.
char* nereid_torch_gpu_memory(int gpu, uint64_t* reserved, uint64_t* allocated) {
  return message_of([&] {
    *reserved = *allocated = 0;
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    if (!allocator->initialized()) return;
    auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(gpu));
    *reserved = static_cast<uint64_t>(stats.reserved_bytes[all].current);
    *allocated = static_cast<uint64_t>(stats.allocated_bytes[all].current);
  });
}

// Gives unused memory of the GPUs back.
char* nereid_torch_empty_cache() {
  return message_of([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

}  // extern "C"
