// What the sources share: how failures are told, and the kinds of values.
#pragma once

#include <torch/script.h>

#include <cstring>

// Runs what may throw; returns the message of what it threw, which the caller frees, or null.
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

// The numbers of `KIND_…` in table.rs.
enum Kind : uint32_t { kOther, kTensor, kStrings, kDictionary, kInteger, kNumber, kBoolean };

inline Kind kind_of(const c10::TypePtr& given) {
  auto type = given;
  if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return kTensor;
    case c10::TypeKind::ListType: {
      bool of_strings = type->expect<c10::ListType>()->getElementType()->kind() == c10::TypeKind::StringType;
      return of_strings ? kStrings : kOther;
    }
    case c10::TypeKind::DictType: {
      auto dictionary = type->expect<c10::DictType>();
      bool of_tensors = dictionary->getKeyType()->kind() == c10::TypeKind::StringType &&
                        dictionary->getValueType()->kind() == c10::TypeKind::TensorType;
      return of_tensors ? kDictionary : kOther;
    }
    case c10::TypeKind::IntType:
      return kInteger;
    case c10::TypeKind::FloatType:
      return kNumber;
    case c10::TypeKind::BoolType:
      return kBoolean;
    default:
      return kOther;
  }
}
