// What the compiler calls at every memory access of a kernel: gcc's -fsanitize=thread and -fsanitize=alignment,bounds,shift
// instrumentation, answered by this runtime instead of libtsan and libubsan.
#include "block.h"
#include "report.h"

namespace emu {
namespace {
inline void access(const void* p, unsigned bytes, int kind, bool aligned, const void* site) {
    Worker& w = worker();
    if ((uintptr_t)p - (uintptr_t)w.stacks < ALL_STACKS_BYTES) return;      // locals
    if ((uintptr_t)p - (uintptr_t)&w < sizeof(Worker)) return;              // threadIdx and its like
    if (aligned && (uintptr_t)p & (bytes - 1)) finding(site, "MISALIGNED: access of %u bytes at %p", bytes, p);
    check_access(p, bytes, kind, site);
}

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeMismatch {
    SourceLocation location;
    const void* type;
    unsigned char log_alignment, kind;
};
struct Located {
    SourceLocation location;
};

const char* base(const char* path) {
    const char* name = path;
    for (; *path; ++path)
        if (*path == '/') name = path + 1;
    return name;
}
}  // namespace
}  // namespace emu

#define EMU_SITE __builtin_return_address(0)
#define EMU_ACCESSES(N)                                                                                    \
    void __tsan_read##N(void* p) { emu::access(p, N, emu::READ, true, EMU_SITE); }                         \
    void __tsan_write##N(void* p) { emu::access(p, N, emu::WRITE, true, EMU_SITE); }                       \
    void __tsan_unaligned_read##N(void* p) { emu::access(p, N, emu::READ, false, EMU_SITE); }              \
    void __tsan_unaligned_write##N(void* p) { emu::access(p, N, emu::WRITE, false, EMU_SITE); }            \
    void __tsan_volatile_read##N(void* p) { emu::access(p, N, emu::READ, true, EMU_SITE); }                \
    void __tsan_volatile_write##N(void* p) { emu::access(p, N, emu::WRITE, true, EMU_SITE); }

extern "C" {
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { emu::access(p, (unsigned)n, emu::READ, false, EMU_SITE); }
void __tsan_write_range(void* p, size_t n) { emu::access(p, (unsigned)n, emu::WRITE, false, EMU_SITE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

void __ubsan_handle_type_mismatch_v1_abort(void* data, void* p) {
    const auto& d = *static_cast<emu::TypeMismatch*>(data);
    emu::finding(nullptr, "MISALIGNED: access at %p wants multiples of %u bytes, %s:%u", p, 1u << d.log_alignment,
                 emu::base(d.location.file), d.location.line);
}
void __ubsan_handle_out_of_bounds_abort(void* data, void* index) {
    const auto& d = *static_cast<emu::Located*>(data);
    emu::finding(nullptr, "OUT OF BOUNDS: index %lld of an array, %s:%u", (long long)(intptr_t)index, emu::base(d.location.file),
                 d.location.line);
}
void __ubsan_handle_shift_out_of_bounds_abort(void* data, void*, void* by) {
    const auto& d = *static_cast<emu::Located*>(data);
    emu::finding(nullptr, "SHIFT: by %lld bits, %s:%u", (long long)(intptr_t)by, emu::base(d.location.file), d.location.line);
}
}
