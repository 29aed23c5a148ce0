#pragma once

#include "kernels/attention.h"
#include "kernels/copy_ahead.h"
#include "kernels/hot_rows.h"
#include "kernels/predict.h"

// Operations whose plain loops serve every host backend: bound by a few memory accesses, or rare.
namespace sparsekv::plain {

// Row i of the item's KV head.
void CopyRow(const CopyRowsArgs::Item& item, uint32_t kv_head, uint32_t i);
// What attention says and leaves of offloaded rows.
void LandRows(const AttendArgs& args);
void Forget(const ForgetArgs& args);
void ForgetRest(const ForgetRestArgs& args);
void CopyAhead(const CopyAheadArgs& args);
void Overlap(const OverlapArgs& args);

}  // namespace sparsekv::plain
