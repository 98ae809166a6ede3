// Capture of streams into graphs and their execution, in a random topological order when streams are deferred.
#include "graphs.h"

#include <algorithm>
#include <cstring>

#include "report.h"

namespace emu {
namespace {
size_t chunks(size_t bytes) { return (bytes + sizeof(ArgumentChunk) - 1) / sizeof(ArgumentChunk); }

bool depends_on(const Graph& g, const std::vector<size_t>& from, size_t node) {
    std::vector<bool> seen(g.nodes.size());
    std::vector<size_t> open = from;
    while (!open.empty()) {
        const size_t i = open.back();
        open.pop_back();
        if (i == node) return true;
        if (seen[i]) continue;
        seen[i] = true;
        open.insert(open.end(), g.nodes[i]->after.begin(), g.nodes[i]->after.end());
    }
    return false;
}
}  // namespace

std::vector<void*> KernelCall::pointers() const {
    std::vector<void*> out;
    auto* at = const_cast<ArgumentChunk*>(arguments.data());
    for (int i = 0; i < function->kernel->parameters; ++i) {
        out.push_back(at);
        at += chunks(function->kernel->sizes[i]);
    }
    out.push_back(nullptr);
    return out;
}

void KernelCall::copy_arguments(void** from) {
    const Kernel& k = *function->kernel;
    size_t total = 0;
    for (int i = 0; i < k.parameters; ++i) total += chunks(k.sizes[i]);
    arguments.assign(total, ArgumentChunk{});
    const auto to = pointers();
    for (int i = 0; i < k.parameters; ++i) memcpy(to[i], from[i], k.sizes[i]);
}

int KernelCall::invalid() const {
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (threads == 0 || threads > MAX_THREADS || block.z > 64) return INVALID_VALUE;
    if (blocks == 0 || blocks > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
    if ((int)shared_bytes > function->max_dynamic_shared) return INVALID_VALUE;
    return OK;
}

int KernelCall::run() const {
    if (const int fault = injected_fault()) return fault;
    auto at = pointers();
    Launch launch{function->kernel, grid, block, shared_bytes, at.data(), cooperative, programmatic, 0};
    if (run_grid(launch)) return OK;
    fprintf(stderr, "CUDA emulator: %s\n", current_finding().c_str());
    return LAUNCH_FAILED;
}

Executable::Executable(const Graph& graph) {
    for (const auto& node : graph.nodes) {
        nodes.push_back(*node);
        origin.push_back(node.get());
    }
}

int Executable::run() const {
    std::vector<bool> done(nodes.size());
    for (size_t left = nodes.size(); left; --left) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (done[i]) continue;
            const auto& after = nodes[i].after;
            if (std::all_of(after.begin(), after.end(), [&](size_t n) { return done[n]; })) ready.push_back(i);
            if (!deferred() && !ready.empty()) break;
        }
        const size_t i = ready[deferred() ? stream_draw() % ready.size() : 0];
        const Node& node = nodes[i];
        const int result = node.type == NodeType::KERNEL ? node.call.run() : node.work ? node.work() : OK;
        if (result != OK) return result;
        done[i] = true;
    }
    return OK;
}

bool Executable::update(const Graph& graph) {
    if (graph.nodes.size() != nodes.size()) return false;
    for (size_t i = 0; i < nodes.size(); ++i) {
        const Node& fresh = *graph.nodes[i];
        if (fresh.type != nodes[i].type || fresh.after != nodes[i].after || fresh.call.function != nodes[i].call.function) return false;
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
        nodes[i] = *graph.nodes[i];
        origin[i] = graph.nodes[i].get();
    }
    return true;
}

void capture_node(Stream& s, Node node) {
    Graph& g = *s.capture->graph;
    node.after = s.tail;
    g.nodes.push_back(std::make_unique<Node>(std::move(node)));
    s.tail = {g.nodes.size() - 1};
}

int begin_capture(Stream& s) {
    if (s.capture) return CAPTURE_UNSUPPORTED;
    s.capture = std::make_shared<Capture>();
    s.capture->graph = std::make_unique<Graph>();
    s.capture->origin = &s;
    s.capture->streams = {&s};
    s.tail.clear();
    return OK;
}

int end_capture(Stream& s, Graph** graph) {
    *graph = nullptr;
    const auto capture = s.capture;
    if (!capture || capture->origin != &s) return CAPTURE_UNSUPPORTED;
    bool joined = true;
    for (Stream* other : capture->streams) {
        for (const size_t node : other->tail) joined = joined && depends_on(*capture->graph, s.tail, node);
        other->capture = nullptr;
        if (other != &s) other->tail.clear();
    }
    s.tail.clear();
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (!joined) return CAPTURE_UNJOINED;
    *graph = capture->graph.release();
    return OK;
}

void capture_event(Stream& s, Event& e) {
    e.capture = s.capture;
    e.nodes = s.tail;
}

bool capture_wait(Stream& s, const Event& e) {
    const auto capture = e.capture.lock();
    if (!capture) return false;
    if (!s.capture) {
        s.capture = capture;
        s.tail.clear();
        capture->streams.push_back(&s);
    }
    for (const size_t n : e.nodes)
        if (std::find(s.tail.begin(), s.tail.end(), n) == s.tail.end()) s.tail.push_back(n);
    return true;
}
}  // namespace emu
