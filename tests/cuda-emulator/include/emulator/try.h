// A small host side for trying a kernel on the emulator without a Rust build (see ../../try): device buffers, launches.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuCtxSynchronize();
int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*,
                           int, int, int, int);
const char* emu_last_error();
}

namespace emu_try {
inline void must(int result, const char* what) {
    if (result == 0) return;
    fprintf(stderr, "%s: error %d %s\n", what, result, emu_last_error());
    exit(1);
}

// A device buffer; device memory is host memory here, so the host may read and write `data` directly between launches.
template <class T> struct Buffer {
    uint64_t address = 0;
    T* data = nullptr;
    size_t size = 0;
    explicit Buffer(size_t n) : size(n) {
        must(cuInit(0), "cuInit");
        must(cuMemAlloc_v2(&address, n * sizeof(T)), "cuMemAlloc");
        data = reinterpret_cast<T*>(address);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { cuMemFree_v2(address); }
    T& operator[](size_t i) { return data[i]; }
};

struct Shape {
    unsigned x, y = 1, z = 1;
};

// Launches a kernel of this name with its parameters by value and waits; ends the program with the report if it fails.
template <class... P> void launch(const char* kernel, Shape grid, Shape block, unsigned shared_bytes, P... parameters) {
    must(cuInit(0), "cuInit");
    void* function = nullptr;
    must(cuModuleGetFunction(&function, nullptr, kernel), kernel);
    must(cuFuncSetAttribute(function, 8, (int)shared_bytes), "cuFuncSetAttribute");
    void* arguments[] = {&parameters..., nullptr};
    must(cuLaunchKernel(function, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, nullptr, arguments, nullptr),
         kernel);
    must(cuCtxSynchronize(), kernel);
}
}  // namespace emu_try
