// What the back end needs of libtorch and tch does not offer: the arguments of `forward`, tensors
// over memory with an owner, inference mode, the current stream.
//
// Every function that can fail returns a message that the caller frees, or null.

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <cstring>
#include <memory>

namespace {

template <typename Body>
char* message_of(Body body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown type");
  }
}

// The numbers are those of `KIND_…` in table.rs.
uint32_t kind_of(const c10::TypePtr& given) {
  auto type = given;
  if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return 1;
    case c10::TypeKind::ListType:
      return type->expect<c10::ListType>()->getElementType()->kind() == c10::TypeKind::StringType ? 2 : 0;
    case c10::TypeKind::DictType: {
      auto dictionary = type->expect<c10::DictType>();
      bool of_tensors = dictionary->getKeyType()->kind() == c10::TypeKind::StringType &&
                        dictionary->getValueType()->kind() == c10::TypeKind::TensorType;
      return of_tensors ? 3 : 0;
    }
    case c10::TypeKind::IntType:
      return 4;
    case c10::TypeKind::FloatType:
      return 5;
    case c10::TypeKind::BoolType:
      return 6;
    default:
      return 0;
  }
}

// Whether what runs may keep something until its next run.
bool keeps_something(const torch::jit::Block* block) {
  for (const auto* node : block->nodes()) {
    auto kind = node->kind();
    // What is called but not in sight may do anything.
    if (kind == c10::prim::SetAttr || kind == c10::prim::CallMethod || kind == c10::prim::CallFunction) return true;
    // The tensor takes the other's memory, which may be that of an argument.
    if (kind == c10::aten::set_) return true;
    if (node->hasAttribute(c10::attr::Subgraph)) return true;
    if (const auto* schema = node->maybeSchema()) {
      for (const auto& argument : schema->arguments()) {
        const auto* alias = argument.alias_info();
        if (alias && alias->isWrite() && argument.type()->kind() != c10::TypeKind::TensorType) return true;
      }
    }
    for (const auto* inner : node->blocks()) {
      if (keeps_something(inner)) return true;
    }
  }
  return false;
}

// Whether what runs may write into a tensor that lies in `container`, which the container's own writers do not tell.
bool writes_into_contents(const torch::jit::AliasDb& aliases, const torch::jit::Block* block,
                          torch::jit::Value* container) {
  for (const auto* node : block->nodes()) {
    if (const auto* schema = node->maybeSchema()) {
      const auto& arguments = schema->arguments();
      for (size_t index = 0; index < arguments.size() && index < node->inputs().size(); ++index) {
        const auto* alias = arguments[index].alias_info();
        auto* value = const_cast<torch::jit::Value*>(node->inputs()[index]);
        if (alias && alias->isWrite() && aliases.mayContainAlias(value, container)) return true;
      }
    }
    for (const auto* inner : node->blocks()) {
      if (writes_into_contents(aliases, inner, container)) return true;
    }
  }
  return false;
}

// The graph of a module's `forward`, for which a file is read without its weights: on this device tensors are shapes
// only. Some modules, quantised ones for instance, cannot be put there.
torch::jit::Module module_for_graph(const char* path) {
  try {
    return torch::jit::load(path, c10::Device(c10::kMeta));
  } catch (const std::exception&) {
    return torch::jit::load(path, c10::Device(c10::kCPU));
  }
}

}  // namespace

extern "C" {

using Visit = void (*)(void* context, const char* name, const char* type_name, uint32_t kind, bool has_default,
                       bool is_written);

// `returns` is told the kind of each result, as far as their number is known.
char* nereid_torch_inspect(const char* path, void* context, Visit visit, void (*returns)(void*, uint32_t),
                           bool* stateful) {
  return message_of([&] {
    auto module = module_for_graph(path);
    auto forward = module.get_method("forward");
    auto graph = forward.graph()->copy();
    torch::jit::Inline(*graph);
    torch::jit::AliasDb aliases(graph);
    *stateful = keeps_something(graph->block());
    const auto& arguments = forward.function().getSchema().arguments();
    for (size_t index = 1; index < arguments.size(); ++index) {
      const auto& argument = arguments[index];
      auto type = argument.type();
      auto* value = graph->inputs().at(index);
      bool is_written = aliases.hasWriters(value) || writes_into_contents(aliases, graph->block(), value);
      visit(context, argument.name().c_str(), type->annotation_str().c_str(), kind_of(type),
            argument.default_value().has_value(), is_written);
    }
    for (const auto& result : forward.function().getSchema().returns()) {
      if (auto tuple = result.type()->cast<c10::TupleType>()) {
        for (const auto& element : tuple->elements()) returns(context, kind_of(element));
      } else if (kind_of(result.type()) == 1 || kind_of(result.type()) == 2) {
        returns(context, kind_of(result.type()));
      }
    }
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

// The tensor in order, on a GPU, where the next run's work comes behind whatever reads it; or on the host, in memory
// that only the result refers to: what a module keeps or hands out twice it may write on its next run.
char* nereid_torch_own(const at::Tensor* given, int gpu, at::Tensor** result) {
  return message_of([&] {
    if (gpu >= 0) {
      *result = new at::Tensor(given->to(c10::Device(c10::kCUDA, gpu)).resolve_conj().resolve_neg().contiguous());
      return;
    }
    auto own = given->to(at::kCPU).resolve_conj().resolve_neg().contiguous();
    size_t handles = own.is_same(*given) ? 2 : 1;
    if (own.use_count() > handles || own.storage().use_count() > 1) own = own.clone();
    *result = new at::Tensor(std::move(own));
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

// Gives unused memory of the GPUs back.
char* nereid_torch_empty_cache() {
  return message_of([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

}  // extern "C"
