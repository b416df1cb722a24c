#include "support/cpu.hpp"

#include <dnnl.h>
#include <omp.h>

#include "support/error.hpp"

namespace moe {

void set_operation_threads(int threads) { omp_set_num_threads(threads); }

namespace detail {

void gemm_piece(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B,
                Index ldb, float beta, float* C, Index ldc) {
  // oneDNN is row-major: C^T = op(B)^T op(A)^T in its eyes. It must stay on this thread: with a team of its own it may split the
  // inner dimension by the number of threads, and the result would depend on that.
  const char ta = a == Op::plain ? 'N' : 'T', tb = b == Op::plain ? 'N' : 'T';
  const int team = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  if (team > 1) omp_set_num_threads(1);
  const dnnl_status_t status = dnnl_sgemm(tb, ta, n, m, k, alpha, B, ldb, A, lda, beta, C, ldc);
  if (team > 1) omp_set_num_threads(team);
  if (status != dnnl_success) throw BackendError("dnnl_sgemm failed with status " + std::to_string(status));
}

void gemm_piece(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B,
                Index ldb, double beta, double* C, Index ldc) {
  using Map = Eigen::Map<const Eigen::MatrixXd, 0, Eigen::OuterStride<>>;
  const Map Am(A, a == Op::plain ? m : k, a == Op::plain ? k : m, Eigen::OuterStride<>(lda));
  const Map Bm(B, b == Op::plain ? k : n, b == Op::plain ? n : k, Eigen::OuterStride<>(ldb));
  Eigen::Map<Eigen::MatrixXd, 0, Eigen::OuterStride<>> Cm(C, m, n, Eigen::OuterStride<>(ldc));
  if (beta == 0)
    Cm.setZero();
  else if (beta != 1)
    Cm *= beta;
  if (a == Op::plain && b == Op::plain)
    Cm.noalias() += alpha * Am * Bm;
  else if (a == Op::plain)
    Cm.noalias() += alpha * Am * Bm.transpose();
  else if (b == Op::plain)
    Cm.noalias() += alpha * Am.transpose() * Bm;
  else
    Cm.noalias() += alpha * Am.transpose() * Bm.transpose();
}

}  // namespace detail

}  // namespace moe
