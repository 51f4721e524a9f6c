#include "src/lane.h"

#include <utility>

namespace tandem {

Lane::Lane(int threads) : pool_(threads), thread_([this] { loop(); }) {}

void Lane::close() {
    {
        std::lock_guard lock(mutex_);
        closing_ = true;
    }
    arrived_.notify_one();
    if (thread_.joinable()) thread_.join();
}

void Lane::submit(Command command) {
    {
        std::lock_guard lock(mutex_);
        if (closing_) throw std::runtime_error("the lane is closed");
        queue_.push_back(std::move(command));
    }
    arrived_.notify_one();
}

void Lane::run(std::function<void(ThreadPool&)> work) {
    const auto done = std::make_shared<Timeline>();
    submit({std::move(work), {}, {done, 1}});
    done->wait(1);
}

void Lane::loop() {
    for (;;) {
        Command command;
        {
            std::unique_lock lock(mutex_);
            arrived_.wait(lock, [&] { return closing_ || !queue_.empty(); });
            if (queue_.empty()) return;
            command = std::move(queue_.front());
            queue_.pop_front();
        }
        execute(command);
    }
}

void Lane::execute(const Command& command) {
    const EventRef& signal = command.signal;
    try {
        if (!unreported_.empty()) throw std::runtime_error(std::exchange(unreported_, {}));
        for (const EventRef& event : command.wait) event.timeline->wait(event.value);
        if (signal.timeline) signal.timeline->begin();
        command.work(pool_);
        if (signal.timeline) signal.timeline->signal(signal.value);
    } catch (const std::exception& error) {
        if (signal.timeline) {
            signal.timeline->fail(signal.value, error.what());
        } else {
            unreported_ = error.what();
        }
    }
}

}  // namespace tandem
