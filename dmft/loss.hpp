/// Losses of theory section 1 on outputs f (C, P), one column per sample.
#pragma once

#include <Eigen/Core>

#include "support/run_spec.hpp"

namespace moe {

/// mse: (1/2) mean_mu |f - y|^2; cross entropy: mean_mu CE(softmax f, y).
double loss_value(Loss loss, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);

/// Delta = -dL/df (C, P); it carries the 1/P.
Eigen::MatrixXd loss_delta(Loss loss, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);

/// Share of samples whose largest output is the target's; with one output, whose sign is.
double accuracy(const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);

}  // namespace moe
