// A communication group, and reducing and gathering over it with nothing but MCCL's Send and Receive of bytes.
// A result has the same bits on every rank: reductions go through the ranks in order.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "base/float16.h"
#include "include/runtime/hardware_abstract/collective/collective_manager.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using distributed::collective::CollectiveManager;

// This process's view of one communication group. Ranks are ranks in the group.
class Group {
 public:
  explicit Group(const std::string &name)
      : name_(name),
        size_(CollectiveManager::instance()->GetGroupSize(name)),
        rank_(CollectiveManager::instance()->GetRankId(name)) {}

  size_t size() const { return size_; }
  size_t rank() const { return rank_; }

  size_t FromWorld(uint32_t rank) const {
    return CollectiveManager::instance()->GetGroupRankFromWorldRank(rank, name_);
  }

  void Send(const char *data, size_t bytes, size_t peer) const {
    if (bytes > 0 && !Library()->Send(data, bytes, kNumberTypeInt8, static_cast<uint32_t>(peer), name_)) {
      MS_LOG(EXCEPTION) << "Sending " << bytes << " bytes to rank " << peer << " of group " << name_ << " failed";
    }
  }

  // Waits as long as MS_NODE_TIMEOUT says. A receive that gave up cannot be asked for again: MCCL counts messages.
  void Receive(char *data, size_t bytes, size_t peer) const {
    if (bytes > 0 && !Library()->Recv(data, bytes, kNumberTypeInt8, static_cast<uint32_t>(peer), name_)) {
      MS_LOG(EXCEPTION) << "Waited MS_NODE_TIMEOUT seconds for " << bytes << " bytes from rank " << peer << " of group "
                        << name_ << "; it is slow, hangs, or is gone";
    }
  }

  // Calls swap(to, from) for every other rank, in an order in which each send meets its receive. Send does not wait
  // for the receiver, so that nobody blocks.
  void ForEachPair(const std::function<void(size_t to, size_t from)> &swap) const {
    for (size_t step = 1; step < size_; ++step) {
      swap((rank_ + step) % size_, (rank_ + size_ - step) % size_);
    }
  }

 private:
  static device::CollectiveCommunicationLib *Library() { return CollectiveManager::instance()->device_comm_lib(); }

  std::string name_;
  size_t size_;
  size_t rank_;
};

// Where each rank's share of `count` elements begins; the last entry is `count`. As even as possible.
inline std::vector<size_t> Shares(size_t count, size_t ranks) {
  std::vector<size_t> begins(ranks + 1);
  for (size_t rank = 0; rank <= ranks; ++rank) {
    begins[rank] = count * rank / ranks;
  }
  return begins;
}

// The type in which values are accumulated: wide enough that half precision is rounded once, and int32 wraps.
template <typename T>
struct Wide {
  using type = T;
};
template <>
struct Wide<float16> {
  using type = float;
};
template <>
struct Wide<int32_t> {
  using type = int64_t;
};

template <typename T>
void Fold(const std::string &op, const std::vector<const char *> &parts, char *result, size_t count) {
  using W = typename Wide<T>::type;
  constexpr size_t kBlock = 1024;
  W totals[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t length = std::min(kBlock, count - begin);
    for (size_t part = 0; part < parts.size(); ++part) {
      const T *values = reinterpret_cast<const T *>(parts[part]) + begin;
      for (size_t i = 0; i < length; ++i) {
        const W value = static_cast<W>(values[i]);
        const bool is_nan = value != value;  // a NaN wins against every number, as in NumPy
        if (part == 0) {
          totals[i] = value;
        } else if (op == "sum") {
          totals[i] += value;
        } else if (op == "max") {
          totals[i] = value > totals[i] || is_nan ? value : totals[i];
        } else {
          totals[i] = value < totals[i] || is_nan ? value : totals[i];
        }
      }
    }
    T *out = reinterpret_cast<T *>(result) + begin;
    for (size_t i = 0; i < length; ++i) {
      out[i] = static_cast<T>(totals[i]);
    }
  }
}

inline void FoldAs(TypeId type, const std::string &op, const std::vector<const char *> &parts, char *result,
                   size_t count) {
  switch (type) {
    case kNumberTypeFloat32:
      return Fold<float>(op, parts, result, count);
    case kNumberTypeFloat16:
      return Fold<float16>(op, parts, result, count);
    case kNumberTypeInt32:
      return Fold<int32_t>(op, parts, result, count);
    default:
      MS_LOG(EXCEPTION) << "No reduction of type " << TypeIdToString(type);
  }
}

// Sends every rank its share of `input` and leaves the reduction of this rank's share in `result`.
inline void ReduceShares(const Group &group, TypeId type, const std::string &op, const char *input, size_t item,
                         const std::vector<size_t> &begins, char *result) {
  const size_t count = begins[group.rank() + 1] - begins[group.rank()];
  std::vector<char> received(count * item * group.size());
  std::vector<const char *> parts(group.size());
  parts[group.rank()] = input + begins[group.rank()] * item;
  group.ForEachPair([&](size_t to, size_t from) {
    group.Send(input + begins[to] * item, (begins[to + 1] - begins[to]) * item, to);
    char *share = received.data() + from * count * item;
    group.Receive(share, count * item, from);
    parts[from] = share;
  });
  FoldAs(type, op, parts, result, count);
}

// Fills `whole`, in which this rank's share is in its place, with the shares of the others.
inline void GatherShares(const Group &group, char *whole, size_t item, const std::vector<size_t> &begins) {
  const auto bytes = [&](size_t rank) { return (begins[rank + 1] - begins[rank]) * item; };
  group.ForEachPair([&](size_t to, size_t from) {
    group.Send(whole + begins[group.rank()] * item, bytes(group.rank()), to);
    group.Receive(whole + begins[from] * item, bytes(from), from);
  });
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
