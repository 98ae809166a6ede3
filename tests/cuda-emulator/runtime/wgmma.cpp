// wgmma: operations queue up per warpgroup, read their operands only at the wait that completes them (the latest legal moment),
// and then write all 128 threads' accumulators.
#include <cstring>

#include "block.h"
#include "device.h"
#include "report.h"

namespace emu {
namespace {
struct Operand {
    uint32_t address, leading, stride;  // bytes
};

Operand decoded(uint64_t descriptor) {
    const auto field = [&](int shift) { return (uint32_t)(descriptor >> shift & 0x3fff) << 4; };
    return {field(0), field(16), field(32)};
}

float bf16_at(const unsigned char* p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return __uint_as_float((uint32_t)v << 16);
}

uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// 8 bf16 (16 bytes, one swizzle unit) of shared memory.
void load8(Worker& w, uint32_t address, float* out, int step) {
    const uint32_t at = swizzled(address);
    if (at + 16 > w.launch->shared_bytes) finding(nullptr, "OUT OF BOUNDS: wgmma reads shared memory at offset %u", at);
    for (int i = 0; i < 8; ++i) out[i * step] = bf16_at(w.dynamic.begin + at + 2 * i);
}

// Rows of a K-major operand: row r is 16 values along k.
uint32_t k_major_address(const Operand& o, int row, int k) {
    return o.address + (uint32_t)(row / 8) * o.stride + (uint32_t)(row % 8) * 128 + (uint32_t)k * 2;
}
// Rows of an MN-major operand: step k is 64 values along n, then the next atom.
uint32_t mn_major_address(const Operand& o, int n, int k) {
    return o.address + (uint32_t)(n / 64) * o.leading + (uint32_t)(k / 8) * o.stride + (uint32_t)(k % 8) * 128 +
           (uint32_t)(n % 64) * 2;
}

struct Scratch {
    float a[64][16], b[16][256], d[64][256];
};

void load_operands(Worker& w, const WgmmaOperation& op, Scratch& s) {
    if (op.from_registers) {
        for (int t = 0; t < 128; ++t)
            for (int i = 0; i < 4; ++i) {
                const int row = t / 32 * 16 + t % 32 / 4 + (i & 1) * 8, k = t % 4 * 2 + (i >> 1) * 8;
                s.a[row][k] = __uint_as_float(op.a_registers[t][i] << 16);
                s.a[row][k + 1] = __uint_as_float(op.a_registers[t][i] & 0xffff0000u);
            }
    } else {
        const Operand a = decoded(op.a);
        for (int row = 0; row < 64; ++row)
            for (int k = 0; k < 16; k += 8) load8(w, k_major_address(a, row, k), &s.a[row][k], 1);
    }
    const Operand b = decoded(op.b);
    if (op.b_mn_major) {
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < op.n; n += 8) load8(w, mn_major_address(b, n, k), &s.b[k][n], 1);
    } else {
        for (int n = 0; n < op.n; ++n)
            for (int k = 0; k < 16; k += 8) load8(w, k_major_address(b, n, k), &s.b[k][n], 256);
    }
}

// Moves accumulators between the threads' registers and the tile.
template <bool GATHER> void move_accumulators(const WgmmaOperation& op, Scratch& s) {
    for (int t = 0; t < 128; ++t)
        for (int j = 0; j < op.n / 8; ++j)
            for (int h = 0; h < 2; ++h) {
                float* tile = &s.d[t / 32 * 16 + t % 32 / 4 + h * 8][j * 8 + t % 4 * 2];
                float* registers = &op.d[t][j * 4 + h * 2];
                memcpy(GATHER ? tile : registers, GATHER ? registers : tile, 2 * sizeof(float));
            }
}

void multiply(const WgmmaOperation& op, Scratch& s) {
    for (int row = 0; row < 64; ++row) {
        float sum[256] = {};
        for (int k = 0; k < 16; ++k) {
            const float a = s.a[row][k];
            for (int n = 0; n < op.n; ++n) sum[n] += a * s.b[k][n];
        }
        for (int n = 0; n < op.n; ++n) s.d[row][n] = op.accumulate ? s.d[row][n] + sum[n] : sum[n];
    }
}

void check_operands(const WgmmaOperation& op, unsigned warpgroup, const void* site) {
    const auto read = [&](uint32_t address) {
        check_async_source(worker().dynamic.begin + swizzled(address), 16, FIRST_WARPGROUP + warpgroup, op.stamp, site);
    };
    if (!op.from_registers)
        for (int row = 0; row < 64; ++row)
            for (int k = 0; k < 16; k += 8) read(k_major_address(decoded(op.a), row, k));
    const Operand b = decoded(op.b);
    for (int n = 0; n < op.n; n += op.b_mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += op.b_mn_major ? 1 : 8)
            read(op.b_mn_major ? mn_major_address(b, n, k) : k_major_address(b, n, k));
}

// Completes the first `count` operations of the queue. Runs of operations into the same registers keep the tile in scratch.
void complete(Worker& w, Warpgroup& g, size_t count) {
    static thread_local Scratch* scratch = new Scratch;
    const float* const* held = nullptr;
    for (size_t i = 0; i < count; ++i) {
        WgmmaOperation& op = *g.queue[i];
        if (op.arrived != 128) finding(nullptr, "DIVERGENCE: wgmma issued by %u of 128 threads", op.arrived);
        const bool same = held && g.queue[i - 1]->n == op.n && memcmp(held, op.d, sizeof op.d) == 0;
        if (held && !same) move_accumulators<false>(*g.queue[i - 1], *scratch);
        if (!same && op.accumulate) move_accumulators<true>(op, *scratch);
        load_operands(w, op, *scratch);
        multiply(op, *scratch);
        held = op.d;
    }
    if (count) move_accumulators<false>(*g.queue[count - 1], *scratch);
    for (size_t i = 0; i < count; ++i) w.spare_operations.push_back(g.queue[i]);
    g.queue.erase(g.queue.begin(), g.queue.begin() + (ptrdiff_t)count);
    g.first_operation += (unsigned)count;
}

WgmmaOperation& new_operation(Worker& w) {
    if (w.spare_operations.empty()) w.spare_operations.push_back(new WgmmaOperation);
    WgmmaOperation* op = w.spare_operations.back();
    w.spare_operations.pop_back();
    return *op;
}
}  // namespace

void reset_warpgroups(Worker& w) {
    const unsigned used = (w.threads + 127) / 128;
    for (unsigned i = 0; i < MAX_WARPGROUPS; ++i) {
        Warpgroup& g = w.warpgroups[i];
        // A larger block that failed may have left operations in groups that this one does not have.
        if (i >= used && g.queue.empty()) continue;
        w.spare_operations.insert(w.spare_operations.end(), g.queue.begin(), g.queue.end());
        g.queue.clear();
        memset(g.issued, 0, sizeof g.issued);
        memset(g.committed, 0, sizeof g.committed);
        g.first_operation = g.wait_arrived = 0;
    }
}
}  // namespace emu

extern "C" {
void emu_wgmma(float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, int n, int b_mn_major, int accumulate) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    Worker& w = worker();
    const unsigned thread = running().linear % 128, group = running().linear / 128;
    Warpgroup& g = w.warpgroups[group];
    if (compute_capability() != 90) finding(site, "UNSUPPORTED: wgmma on compute capability %d", compute_capability());
    if ((!a_registers && a >> 62 != 1) || b >> 62 != 1) finding(site, "wgmma: the emulator knows the 128-byte swizzle only");
    const unsigned number = g.issued[thread]++;
    if (number == g.first_operation + g.queue.size()) {
        WgmmaOperation& op = new_operation(w);
        op.a = a;
        op.b = b;
        op.n = n;
        op.from_registers = a_registers != nullptr;
        op.b_mn_major = b_mn_major;
        op.accumulate = accumulate != 0;
        op.arrived = 0;
        op.group = g.committed[thread];
        op.stamp = ++w.shadow.tick;
        g.queue.push_back(&op);
        if (CHECKING) check_operands(op, group, site);
    }
    WgmmaOperation& op = *g.queue[number - g.first_operation];
    if (op.n != n || op.b != b || (!a_registers && op.a != a) || op.accumulate != (accumulate != 0) || op.group != g.committed[thread])
        finding(site, "DIVERGENCE: wgmma operands differ inside of a warpgroup");
    op.d[thread] = d;
    if (a_registers) memcpy(op.a_registers[thread], a_registers, sizeof op.a_registers[thread]);
    ++op.arrived;
}

void emu_wgmma_commit() {
    using namespace emu;
    ++worker().warpgroups[running().linear / 128].committed[running().linear % 128];
}

void emu_wgmma_wait(int groups_in_flight) {
    using namespace emu;
    Worker& w = worker();
    Fiber& f = running();
    const unsigned group = f.linear / 128;
    Warpgroup& g = w.warpgroups[group];
    const unsigned committed = g.committed[f.linear % 128];
    if (++g.wait_arrived < 128) {
        suspend(State::WARPGROUP);
        return;
    }
    g.wait_arrived = 0;
    size_t count = 0;
    uint32_t stamp = 0;
    while (count < g.queue.size() && g.queue[count]->group + groups_in_flight < committed) stamp = g.queue[count++]->stamp;
    complete(w, g, count);
    for (unsigned i = group * 128; i < group * 128 + 128; ++i) {
        if (CHECKING && stamp) clock_learn(w.fibers[i], FIRST_WARPGROUP + group, stamp);
        if (i != f.linear) wake(w, i);
    }
}
}
