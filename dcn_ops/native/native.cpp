// The library: deformable convolutions and aggregations of float32 in channels_last, forward and backward.

#include "aggregate.h"
#include "columns.h"
#include "columns_backward.h"
#include "depthwise.h"
#include "problem.h"

namespace {

bool is_depthwise(const Problem& a) { return a.groups == a.channels && a.filters == a.channels; }

// 0, or 1 where memory ran out.
template <class Function>
int32_t run(const Function& function) {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED int64_t dcn_abi_version() { return ABI_VERSION; }

EXPORTED int32_t dcn_convolve(const Problem* problem) {
  return run([&] { is_depthwise(*problem) ? depthwise::forward(*problem) : columns::forward(*problem); });
}

EXPORTED int32_t dcn_convolve_backward(const Problem* problem) {
  return run([&] { is_depthwise(*problem) ? depthwise::backward(*problem) : columns::backward(*problem); });
}

EXPORTED int32_t dcn_aggregate(const Aggregation* aggregation) {
  return run([&] { aggregate::forward(*aggregation); });
}

EXPORTED int32_t dcn_aggregate_backward(const Aggregation* aggregation) {
  return run([&] { aggregate::backward(*aggregation); });
}

}
