// Streams and events: work runs when it is enqueued, or, deferred, in a random order that keeps only what streams, events and
// host waits promise. Deferred execution turns a missing wait into wrong numbers.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "device.h"

namespace emu {
struct Graph;
struct Stream;

struct Operation {
    std::function<int()> work;                      // result code; null for a marker
    std::vector<std::shared_ptr<Operation>> after;  // besides the one before it in its stream
    Context* context = nullptr;
    std::chrono::steady_clock::time_point finished;
    bool done = false;
};
using OperationPtr = std::shared_ptr<Operation>;

// A capture in progress: the graph it builds and the streams that take part.
struct Capture {
    std::unique_ptr<Graph> graph;
    Stream* origin;
    std::vector<Stream*> streams;
    bool invalid = false;
};

struct Stream {
    Context* context = nullptr;
    unsigned flags = 0;
    int priority = 0;
    std::deque<OperationPtr> queue;
    OperationPtr last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tail;  // the graph nodes that the next captured one depends on
};

struct Event {
    OperationPtr recorded;
    std::weak_ptr<Capture> capture;
    std::vector<size_t> nodes;
};

Stream& stream_of(void* handle);  // null, legacy and per-thread handles are one stream
Stream* create_stream(unsigned flags, int priority);
void destroy_stream(Stream* s);

// Appends work to a stream that is not capturing. Eager: runs it now.
OperationPtr enqueue(Stream& s, std::function<int()> work, std::vector<OperationPtr> after = {});
void run_until(const OperationPtr& op);
void drain(Stream& s);
void drain_all();
// Deferred mode: maybe runs some of what is queued.
void make_random_progress();
void set_deferred(bool deferred, uint64_t seed);
bool deferred();
uint64_t stream_draw();
bool any_capture();
}  // namespace emu
