// Findings, and the translation of addresses into source lines.
#include "report.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <mutex>

#include "block.h"

namespace emu {
namespace {
std::mutex guard;
std::string first;
std::atomic<bool> any{false};

void record(const std::string& text) {
    std::lock_guard<std::mutex> lock(guard);
    if (first.empty()) first = text;
    any = true;
}

std::string formatted(const char* format, va_list arguments) {
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    return text;
}
}  // namespace

bool failed() { return any.load(std::memory_order_relaxed); }

const std::string& current_finding() { return first; }

std::string take_finding() {
    std::lock_guard<std::mutex> lock(guard);
    std::string text;
    text.swap(first);
    any = false;
    return text;
}

std::string source_line(const void* site) {
    Dl_info info;
    if (!site || !dladdr(site, &info) || !info.dli_fname) return "";
    const size_t offset = (const char*)site - (const char*)info.dli_fbase - 1;
    char command[1024];
    snprintf(command, sizeof command, "addr2line -s -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
    std::string lines;
    if (FILE* pipe = popen(command, "r")) {
        char line[256];
        while (fgets(line, sizeof line, pipe)) {
            std::string s(line);
            if (s.find("??") != std::string::npos) continue;
            while (!s.empty() && (s.back() == '\n' || s.back() == ' ')) s.pop_back();
            const size_t discriminator = s.find(" (");
            if (discriminator != std::string::npos) s.resize(discriminator);
            if (s.find(".h:") != std::string::npos && lines.empty()) continue;  // the emulator's own headers
            lines += (lines.empty() ? "" : " < ") + s;
        }
        pclose(pipe);
    }
    return lines;
}

void finding(const void* site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = formatted(format, arguments);
    va_end(arguments);
    const Fiber& f = running();
    Worker& w = worker();
    const std::string line = source_line(site);
    char place[512];
    snprintf(place, sizeof place, "%s%s [kernel %s block (%u,%u,%u) thread %u]", line.empty() ? "" : " at ", line.c_str(),
             w.launch->kernel->name, w.block_index.x, w.block_index.y, w.block_index.z, f.linear);
    record(text + place);
    abandon_block();
}

void host_finding(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(formatted(format, arguments));
    va_end(arguments);
}
}  // namespace emu
