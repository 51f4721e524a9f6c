// A counter that only grows; host and devices wait for values and signal them (the semantics of a Vulkan
// timeline semaphore). A step that failed reaches its value too, with the reason attached, so that nobody
// waits for ever.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace tandem {

struct StepFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Shared with lanes, which drop their references without the interpreter: always owned by a C++ shared_ptr.
class Timeline : public std::enable_shared_from_this<Timeline> {
 public:
    uint64_t value() const;
    void signal(uint64_t value);
    // Reaches `value` as failed: waiting for exactly this value throws StepFailed(reason).
    void fail(uint64_t value, const std::string& reason);
    void wait(uint64_t value) const;
    // The run that will signal next begins now: it has waited for all that it needs.
    void begin();
    // When the run that signalled `value` began and ended, in seconds of the steady clock; of the last few
    // runs.
    std::pair<double, double> run(uint64_t value) const;

 private:
    void advance(uint64_t value);

    mutable std::mutex mutex_;
    mutable std::condition_variable reached_;
    uint64_t value_ = 0;
    double begun_ = 0;
    struct Run {
        uint64_t value = 0;
        double begin = 0, end = 0;
    };
    std::array<Run, 8> runs_;
    std::map<uint64_t, std::string> failures_;  // the last few; older ones have been waited for
};

}  // namespace tandem
