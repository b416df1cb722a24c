/// Losses of theory section 1 on the outputs of a finite network, shared by the fast and the reference trainer.
#pragma once

#include <Eigen/Core>

#include "support/run_spec.hpp"

namespace moe::network {

/// mse = (1/2) mean_mu |f - y|^2, cross entropy = mean_mu (-sum_c y log softmax(f)). f, y (C, P).
double loss_value(Loss kind, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);
/// Share of samples whose largest output is the largest target; with one output, whose signs agree.
double accuracy(const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);

}  // namespace moe::network
