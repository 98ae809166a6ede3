// Driver API: streams, events, captures and graphs.
#include "driver.h"

using namespace emu;

extern "C" {
int cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    return entry([&] {
        *stream = create_stream(flags, priority);
        return OK;
    });
}
int cuStreamCreate(void** stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
int cuStreamDestroy_v2(void* stream) {
    std::lock_guard lock(driver_lock());
    if (!stream) return INVALID_HANDLE;
    destroy_stream(static_cast<Stream*>(stream));
    return OK;
}
int cuStreamGetPriority(void* stream, int* priority) {
    *priority = stream_of(stream).priority;
    return OK;
}
int cuStreamSynchronize(void* stream) {
    return entry([&]() -> int {
        Stream& s = stream_of(stream);
        if (s.capture) {
            s.capture->invalid = true;
            return CAPTURE_UNSUPPORTED;
        }
        drain(s);
        return s.context->sticky;
    });
}
int cuStreamQuery(void* stream) {
    return entry([&]() -> int {
        make_random_progress();
        return stream_of(stream).queue.empty() ? OK : NOT_READY;
    });
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    return entry([&]() -> int {
        Stream& s = stream_of(stream);
        const Event& e = *static_cast<Event*>(event);
        if (capture_wait(s, e)) return OK;
        if (s.capture) return CAPTURE_UNSUPPORTED;  // an event from outside of the capture
        if (e.recorded && !e.recorded->done) enqueue(s, nullptr, {e.recorded});
        return OK;
    });
}
int cuLaunchHostFunc(void* stream, void (*f)(void*), void* data) {
    return entry([&] {
        return submit(stream, NodeType::HOST, [=] {
            f(data);
            return OK;
        });
    });
}
int cuStreamAttachMemAsync(void*, DevicePointer, size_t, unsigned) { return OK; }

int cuEventCreate(void** event, unsigned) {
    return entry([&] {
        *event = new Event;
        return OK;
    });
}
int cuEventDestroy_v2(void* event) {
    std::lock_guard lock(driver_lock());
    delete static_cast<Event*>(event);
    return OK;
}
int cuEventRecord(void* event, void* stream) {
    return entry([&] {
        Stream& s = stream_of(stream);
        Event& e = *static_cast<Event*>(event);
        if (s.capture)
            capture_event(s, e);
        else
            e = {enqueue(s, nullptr), {}, {}};
        return OK;
    });
}
int cuEventSynchronize(void* event) {
    return entry([&]() -> int {
        const Event& e = *static_cast<Event*>(event);
        if (!e.capture.expired()) return CAPTURE_UNSUPPORTED;
        run_until(e.recorded);
        return current_context().sticky;
    });
}
int cuEventQuery(void* event) {
    return entry([&]() -> int {
        make_random_progress();
        const Event& e = *static_cast<Event*>(event);
        return !e.recorded || e.recorded->done ? OK : NOT_READY;
    });
}
int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    return entry([&]() -> int {
        const auto &a = static_cast<Event*>(from)->recorded, &b = static_cast<Event*>(to)->recorded;
        if (!a || !b) return INVALID_HANDLE;
        if (!a->done || !b->done) return NOT_READY;
        *milliseconds = std::chrono::duration<float, std::milli>(b->finished - a->finished).count();
        return OK;
    });
}
int cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

int cuStreamBeginCapture_v2(void* stream, int) {
    return entry([&]() -> int { return (uintptr_t)stream <= 2 ? CAPTURE_UNSUPPORTED : begin_capture(stream_of(stream)); });
}
int cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard lock(driver_lock());
    Graph* g = nullptr;
    const int result = end_capture(stream_of(stream), &g);
    *graph = g;
    return result;
}
int cuStreamIsCapturing(void* stream, int* status) {
    std::lock_guard lock(driver_lock());
    const auto& capture = stream_of(stream).capture;
    *status = !capture ? 0 : capture->invalid ? 2 : 1;
    return OK;
}

int cuGraphCreate(void** graph, unsigned) {
    *graph = new Graph;
    return OK;
}
int cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return OK;
}
int cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    const auto& all = static_cast<Graph*>(graph)->nodes;
    if (nodes)
        for (size_t i = 0; i < *count; ++i) nodes[i] = i < all.size() ? all[i].get() : nullptr;
    if (!nodes || *count > all.size()) *count = all.size();
    return OK;
}
int cuGraphNodeGetType(void* node, int* type) {
    *type = (int)static_cast<Node*>(node)->type;
    return OK;
}
int cuGraphKernelNodeGetParams_v2(void* node, KernelNodeParameters* out) {
    const Node& n = *static_cast<Node*>(node);
    if (n.type != NodeType::KERNEL) return INVALID_VALUE;
    static thread_local std::vector<void*> arguments;
    const KernelCall& c = n.call;
    arguments = c.pointers();
    *out = {c.function, c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z, c.shared_bytes, arguments.data(),
            nullptr, nullptr, nullptr};
    return OK;
}

static int set_parameters(Node& node, const KernelNodeParameters& p) {
    if (node.type != NodeType::KERNEL || !p.function) return INVALID_VALUE;
    KernelCall call{p.function, {p.grid_x, p.grid_y, p.grid_z}, {p.block_x, p.block_y, p.block_z}, p.shared_bytes,
                    node.call.cooperative, node.call.programmatic, {}};
    if (const int invalid = call.invalid()) return invalid;
    call.copy_arguments(p.arguments);
    node.call = std::move(call);
    return OK;
}
int cuGraphKernelNodeSetParams_v2(void* node, const KernelNodeParameters* p) {
    return entry([&] { return set_parameters(*static_cast<Node*>(node), *p); });
}
int cuGraphExecKernelNodeSetParams_v2(void* executable, void* node, const KernelNodeParameters* p) {
    return entry([&]() -> int {
        auto& e = *static_cast<Executable*>(executable);
        for (size_t i = 0; i < e.origin.size(); ++i)
            if (e.origin[i] == node) return set_parameters(e.nodes[i], *p);
        return INVALID_VALUE;
    });
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return entry([&] {
        *executable = new Executable(*static_cast<Graph*>(graph));
        return OK;
    });
}
int cuGraphUpload(void*, void*) { return OK; }
// The parameters of the launch are those of this moment, whatever updates follow.
int cuGraphLaunch(void* executable, void* stream) {
    return entry([&]() -> int {
        Stream& s = stream_of(stream);
        if (s.capture) return NOT_SUPPORTED;  // graphs inside of graphs
        auto& e = *static_cast<Executable*>(executable);
        if (!deferred()) {
            enqueue(s, [&e] { return e.run(); });
        } else {
            enqueue(s, [copy = e] { return copy.run(); });
        }
        return OK;
    });
}
int cuGraphExecUpdate_v2(void* executable, void* graph, GraphUpdateInfo* info) {
    return entry([&]() -> int {
        const bool same = static_cast<Executable*>(executable)->update(*static_cast<Graph*>(graph));
        if (info) *info = {same ? 0 : 2, nullptr, nullptr};
        return same ? OK : GRAPH_EXEC_UPDATE_FAILURE;
    });
}
int cuGraphExecDestroy(void* executable) {
    std::lock_guard lock(driver_lock());
    delete static_cast<Executable*>(executable);
    return OK;
}
}
