/// Results of jobs that were shared out over ranks, from each to all.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "support/archive.hpp"
#include "support/error.hpp"
#include "support/ranks.hpp"

namespace moe {

namespace detail {
/// A job's result with what it failed with, which its own description leaves out.
template <class Result>
struct ResultAndFailure {
  Result* result;
  void transfer(Archive& a) {
    a("result", *result);
    std::vector<std::vector<int>> failure;
    if (const auto& f = result->failure; f && !a.loading())
      failure = {{f->step}, {f->field.begin(), f->field.end()}, {f->detail.begin(), f->detail.end()}};
    auto parts = failure.size();
    a("failed", parts);
    if (parts == 0) return;
    failure.resize(parts);
    for (std::size_t k = 0; k < parts; ++k) a(std::to_string(k), failure[k]);
    const auto text = [&](std::size_t k) { return std::string(failure[k].begin(), failure[k].end()); };
    if (a.loading()) result->failure = NumericsError(failure[0][0], text(1), text(2));
  }
};
}  // namespace detail

/// results[k] := that of the rank to which job k belongs, on every rank. They travel as the files that checkpoints keep them in.
template <class Result>
void share_results(std::vector<Result>& results) {
  if (!ranks().several()) return;
  const std::string path = rank_file();
  for (std::size_t k = 0; k < results.size(); ++k) {
    detail::ResultAndFailure<Result> one{&results[k]};
    std::vector<char> bytes;
    if (ranks().mine(k)) {
      H5Writer file(path, "TMPDIR");
      Archive(file, "/job")("result", one);
      file.commit();
      bytes = take_file(path);
    }
    ranks().broadcast(bytes, ranks().owner(k));
    if (ranks().mine(k)) continue;
    put_file(path, bytes);
    {
      const H5Reader file(path);
      Archive(file, "/job")("result", one);
    }
    take_file(path);
  }
}

}  // namespace moe
