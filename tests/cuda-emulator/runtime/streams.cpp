// The queues of the streams and the scheduler that empties them.
#include "streams.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "graphs.h"

namespace emu {
namespace {
constexpr unsigned NON_BLOCKING = 1;

std::vector<Stream*>& all_streams() {
    static std::vector<Stream*> streams;
    return streams;
}

Stream& null_stream() {
    static Stream* const streams = [] {
        auto* s = new Stream[MAX_DEVICES];
        for (int i = 0; i < MAX_DEVICES; ++i) {
            s[i].context = &context_of(i);
            all_streams().push_back(&s[i]);
        }
        return s;
    }();
    return streams[current_context().device];
}

bool is_deferred = false;
uint64_t random_state = 1;

void run(Operation& op) {
    if (op.work && op.context->sticky == OK) {
        const int result = op.work();
        if (result != OK && op.context->sticky == OK) op.context->sticky = result;
    }
    op.work = nullptr;
    op.after.clear();
    op.finished = std::chrono::steady_clock::now();
    op.done = true;
}

bool runnable(const Operation& op) {
    return std::all_of(op.after.begin(), op.after.end(), [](const OperationPtr& o) { return o->done; });
}

// Runs the front of a random stream that can go on; false if none can.
bool run_one() {
    std::vector<Stream*> ready;
    for (Stream* s : all_streams())
        if (!s->queue.empty() && runnable(*s->queue.front())) ready.push_back(s);
    if (ready.empty()) return false;
    Stream& s = *ready[stream_draw() % ready.size()];
    const OperationPtr op = s.queue.front();
    s.queue.pop_front();
    run(*op);
    return true;
}
}  // namespace

uint64_t stream_draw() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 11;
}

Stream& stream_of(void* handle) {
    if (handle == nullptr || handle == (void*)1 || handle == (void*)2) return null_stream();
    return *static_cast<Stream*>(handle);
}

Stream* create_stream(unsigned flags, int priority) {
    auto* s = new Stream;
    s->context = &current_context();
    s->flags = flags;
    s->priority = priority;
    all_streams().push_back(s);
    return s;
}

void destroy_stream(Stream* s) {
    drain(*s);
    std::erase(all_streams(), s);
    delete s;
}

OperationPtr enqueue(Stream& s, std::function<int()> work, std::vector<OperationPtr> after) {
    auto op = std::make_shared<Operation>();
    op->work = std::move(work);
    op->after = std::move(after);
    op->context = s.context;
    // The null stream and streams that were not made NON_BLOCKING wait for each other.
    const bool is_null = &s == &null_stream();
    if (is_deferred && !(s.flags & NON_BLOCKING))
        for (const Stream* other : all_streams())
            if (other != &s && other->context == s.context && other->last && !other->last->done &&
                (is_null ? !(other->flags & NON_BLOCKING) : other == &null_stream()))
                op->after.push_back(other->last);
    s.last = op;
    if (!is_deferred) {
        run(*op);
        return op;
    }
    s.queue.push_back(op);
    make_random_progress();
    return op;
}

void run_until(const OperationPtr& op) {
    while (op && !op->done)
        if (!run_one()) {
            fprintf(stderr, "CUDA emulator: streams wait for each other in a circle\n");
            abort();
        }
}

void drain(Stream& s) {
    while (!s.queue.empty()) run_until(s.queue.back());
}

void drain_all() {
    for (Stream* s : all_streams()) drain(*s);
}

void make_random_progress() {
    if (!is_deferred || stream_draw() % 4) return;
    for (uint64_t n = stream_draw() % 4; n; --n)
        if (!run_one()) return;
}

void set_deferred(bool deferred, uint64_t seed) {
    if (!deferred) drain_all();
    is_deferred = deferred;
    random_state = seed * 0x9e3779b97f4a7c15ull | 1;
    for (int i = 0; i < 4; ++i) stream_draw();
}

bool deferred() { return is_deferred; }

bool any_capture() {
    return std::any_of(all_streams().begin(), all_streams().end(), [](const Stream* s) { return s->capture != nullptr; });
}
}  // namespace emu
