#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/gate.h"
#include "sparsekv/v1/kv_store.pb.h"

namespace sparsekv {

// The coordinator's end of the kv_store. Runs on the strand, as do its callbacks; no method calls
// back before it returns. A store whose boot id changed, that does not answer in time or is not
// there takes the link down; it is up again once Describe succeeds, and never before every call of
// the time before has been answered.
class StoreLink {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnStoreUp(const v1::DescribeResponse& store) = 0;
    virtual void OnStoreDown(const absl::Status& why) = 0;
  };
  template <typename Response>
  using Callback = std::function<void(absl::StatusOr<Response>)>;

  virtual ~StoreLink() = default;
  virtual void Start(Listener* listener) = 0;
  // Each callback comes exactly once; Unavailable or DeadlineExceeded when it is not known whether
  // the store did it.
  virtual void Allocate(const v1::AllocateRequest& request,
                        Callback<v1::AllocateResponse> done) = 0;
  virtual void Release(const v1::ReleaseRequest& request, Callback<v1::ReleaseResponse> done) = 0;
  virtual void Reconcile(const v1::ReconcileRequest& request,
                         Callback<v1::ReconcileResponse> done) = 0;
  // No callbacks after this.
  virtual void Stop() = 0;
};

// `gate`: as for MakeWorkerLink.
std::shared_ptr<StoreLink> MakeStoreLink(boost::asio::any_io_executor strand, Gate* gate,
                                         std::string socket_path);

}  // namespace sparsekv
