#include "src/timeline.h"

namespace tandem {

namespace {
constexpr size_t kFailuresKept = 64;
}

uint64_t Timeline::value() const {
    std::lock_guard lock(mutex_);
    return value_;
}

void Timeline::advance(uint64_t value) {
    if (value > value_) value_ = value;
    reached_.notify_all();
}

void Timeline::signal(uint64_t value) {
    std::lock_guard lock(mutex_);
    advance(value);
}

void Timeline::fail(uint64_t value, const std::string& reason) {
    std::lock_guard lock(mutex_);
    failures_[value] = reason;
    if (failures_.size() > kFailuresKept) failures_.erase(failures_.begin());
    advance(value);
}

void Timeline::wait(uint64_t value) const {
    std::unique_lock lock(mutex_);
    reached_.wait(lock, [&] { return value_ >= value; });
    if (const auto failure = failures_.find(value); failure != failures_.end())
        throw StepFailed(failure->second);
}

}  // namespace tandem
