#include "src/timeline.h"

#include <chrono>

namespace tandem {

namespace {
constexpr size_t kFailuresKept = 64;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

uint64_t Timeline::value() const {
    std::lock_guard lock(mutex_);
    return value_;
}

void Timeline::advance(uint64_t value) {
    if (value > value_) value_ = value;
    runs_[value % runs_.size()] = {value, begun_, now()};
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

void Timeline::begin() {
    std::lock_guard lock(mutex_);
    begun_ = now();
}

std::pair<double, double> Timeline::run(uint64_t value) const {
    std::lock_guard lock(mutex_);
    const Run& found = runs_[value % runs_.size()];
    if (found.value != value) throw std::out_of_range("no run that signalled this value is known");
    return {found.begin, found.end};
}

}  // namespace tandem
