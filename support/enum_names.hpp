/// Names of the enumerations as they stand in files, in enumerator order.
#pragma once

#include <string>
#include <vector>

#include "support/run_spec.hpp"

namespace moe {

inline std::vector<std::string> enum_names(Activation) { return {"tanh", "relu", "gelu", "identity"}; }
inline std::vector<std::string> enum_names(Gate) { return {"sigmoid", "softmax", "constant"}; }
inline std::vector<std::string> enum_names(Routing) { return {"soft", "topk"}; }
inline std::vector<std::string> enum_names(ReadoutInit) { return {"mup", "zero"}; }
inline std::vector<std::string> enum_names(Norm) { return {"none", "rms"}; }
inline std::vector<std::string> enum_names(Loss) { return {"mse", "cross_entropy"}; }
inline std::vector<std::string> enum_names(OptimizerKind) {
  return {"sgd", "momentum", "adam", "adamw", "signsgd", "adafactor"};
}
inline std::vector<std::string> enum_names(Matching) { return {"auto", "on", "off"}; }
inline std::vector<std::string> enum_names(Precision) { return {"float32", "float64"}; }
inline std::vector<std::string> enum_names(Normalize) { return {"sample", "feature", "none"}; }
inline std::vector<std::string> enum_names(BatchOrder) { return {"sequential", "shuffled"}; }
inline std::vector<std::string> enum_names(Dynamics) { return {"gd", "flow"}; }
inline std::vector<std::string> enum_names(Stepper) { return {"rk4", "dopri5", "abm"}; }
inline std::vector<std::string> enum_names(Form) { return {"auto", "bases", "dense"}; }
inline std::vector<std::string> enum_names(Method) { return {"sweep", "iterate"}; }
inline std::vector<std::string> enum_names(Start) { return {"auto", "pass", "zero"}; }
inline std::vector<std::string> enum_names(Device) { return {"auto", "cpu", "cuda"}; }

template <class E>
std::string enum_name(E value) {
  return enum_names(value).at(static_cast<std::size_t>(value));
}

}  // namespace moe
