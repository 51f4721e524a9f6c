// The CPU device's in-order queue: one native thread takes commands, waits for their events, runs their work
// on the thread pool and signals. Python queues a step and holds nothing while it runs.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "src/scratch.h"
#include "src/thread_pool.h"
#include "src/timeline.h"

namespace tandem {

struct EventRef {
    std::shared_ptr<Timeline> timeline;
    uint64_t value;
};

struct Command {
    std::function<void(ThreadPool&)> work;
    std::vector<EventRef> wait;
    EventRef signal;  // timeline may be null
};

class Lane {
 public:
    explicit Lane(int threads);
    ~Lane() { close(); }

    int threads() const { return pool_.count(); }
    const std::shared_ptr<Scratch>& scratch() const { return scratch_; }
    // Throws std::runtime_error once the lane is closed.
    void submit(Command command);
    // Queues work and waits for its end. Throws what it throws, as StepFailed.
    void run(std::function<void(ThreadPool&)> work);
    // Finishes what is queued and ends the thread; once is enough.
    void close();

 private:
    void loop();
    void execute(const Command& command);

    ThreadPool pool_;
    const std::shared_ptr<Scratch> scratch_ = std::make_shared<Scratch>();
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<Command> queue_;
    bool closing_ = false;
    // Why a run without a signal failed; the next run that has one reports it.
    std::string unreported_;
    std::thread thread_;
};

}  // namespace tandem
