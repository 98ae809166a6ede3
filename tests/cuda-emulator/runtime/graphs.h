// Graphs: captured work as nodes with dependencies, and their executable copies.
#pragma once
#include <memory>
#include <vector>

#include "launch.h"
#include "streams.h"

namespace emu {
struct Function {
    Kernel* kernel;
    int max_dynamic_shared = 48 * 1024;
};

// Parameters are aligned to 64 bytes at most (tensor maps).
struct alignas(64) ArgumentChunk {
    unsigned char bytes[64];
};

// A kernel with everything of its launch, arguments copied.
struct KernelCall {
    Function* function = nullptr;
    dim3 grid, block;
    unsigned shared_bytes = 0;
    bool cooperative = false, programmatic = false;
    std::vector<ArgumentChunk> arguments;  // each from a chunk of its own
    std::vector<void*> pointers() const;
    void copy_arguments(void** from);
    // Result code of the checks that the driver makes at the launch.
    int invalid() const;
    int run() const;
};

// The driver's node types that occur.
enum class NodeType { KERNEL = 0, COPY = 1, FILL = 2, HOST = 3, EMPTY = 5 };

struct Node {
    NodeType type = NodeType::EMPTY;
    std::vector<size_t> after;
    KernelCall call;
    std::function<int()> work;
};
struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;
};
struct Executable {
    std::vector<Node> nodes;
    std::vector<const Node*> origin;
    explicit Executable(const Graph& graph);
    int run() const;
    // False if the other graph has another shape.
    bool update(const Graph& graph);
};

// Adds a node to the capture that a stream takes part in.
void capture_node(Stream& s, Node node);
int begin_capture(Stream& s);
int end_capture(Stream& s, Graph** graph);
void capture_event(Stream& s, Event& e);
// True if the wait was captured.
bool capture_wait(Stream& s, const Event& e);
}  // namespace emu
