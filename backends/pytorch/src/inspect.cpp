// What a model file tells without being run: the arguments of its `forward`, and whether it keeps something.

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>

#include "libtorch.h"

namespace {

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
      } else if (kind_of(result.type()) == kTensor || kind_of(result.type()) == kStrings) {
        returns(context, kind_of(result.type()));
      }
    }
  });
}

}  // extern "C"
