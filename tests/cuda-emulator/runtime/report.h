// Findings: what the emulator has to say about a kernel. The first one sticks until it is taken.
#pragma once
#include <cstddef>
#include <string>

namespace emu {
// Records a finding with the kernel, block, thread and source line, and leaves the block. `site` may be null.
[[noreturn, gnu::format(printf, 2, 3)]] void finding(const void* site, const char* format, ...);
// The same where there is no running thread to blame.
[[gnu::format(printf, 1, 2)]] void host_finding(const char* format, ...);
bool failed();
std::string take_finding();
const std::string& current_finding();
// "file.cu:12" for an address inside of a kernel module, innermost inlined function first.
std::string source_line(const void* site);
}  // namespace emu
