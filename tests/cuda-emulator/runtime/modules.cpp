// The kernel registry, the opening of modules, and where a module's thread-local (shared) and constant data lie.
#include "modules.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

namespace emu {
namespace {
std::map<std::string, Kernel>& registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

struct Search {
    const void* wanted;
    Range found;
};

int match_tls(dl_phdr_info* info, size_t, void* data) {
    auto& search = *static_cast<Search*>(data);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
        const Range range{(unsigned char*)info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
        if (range.begin && range.holds(search.wanted)) search.found = range;
    }
    return search.found.begin != nullptr;
}

std::vector<Range>& images() {
    static std::vector<Range> ranges;
    return ranges;
}

int note_images(dl_phdr_info* info, size_t, void* data) {
    if (std::string(info->dlpi_name).rfind(*static_cast<std::string*>(data), 0) != 0) return 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD)
            images().push_back({(unsigned char*)info->dlpi_addr + header.p_vaddr, header.p_memsz});
    }
    return 0;
}
}  // namespace

void open_modules() {
    static std::once_flag once;
    std::call_once(once, [] {
        Dl_info self;
        dladdr((void*)&find_kernel, &self);
        std::string directory(self.dli_fname);
        directory.resize(directory.rfind('/') + 1);
        std::ifstream list(directory + "modules.list");
        for (std::string name; std::getline(list, name);) {
            if (dlopen((directory + name).c_str(), RTLD_NOW | RTLD_LOCAL)) continue;
            fprintf(stderr, "the CUDA emulator cannot open a kernel module: %s\n", dlerror());
            abort();
        }
        dl_iterate_phdr(note_images, &directory);
    });
}

Kernel* find_kernel(const char* name) {
    const auto it = registry().find(name);
    return it == registry().end() ? nullptr : &it->second;
}

Range static_shared_of(const Kernel& kernel) {
    thread_local std::map<EmuSharedProbe, Range> known;
    const auto it = known.find(kernel.shared);
    if (it != known.end()) return it->second;
    Search search{kernel.shared(), {}};
    dl_iterate_phdr(match_tls, &search);
    return known[kernel.shared] = search.found;
}

bool constant_data(const void* p, size_t bytes) {
    for (const Range& r : images())
        if (r.holds(p) && r.holds((const char*)p + bytes - 1)) return true;
    return false;
}
}  // namespace emu

extern "C" void emu_register(const char* name, EmuInvoke invoke, int parameters, const unsigned* sizes, EmuSharedProbe shared) {
    auto [it, fresh] = emu::registry().try_emplace(name);
    if (!fresh) {
        fprintf(stderr, "two kernels are called %s\n", name);
        abort();
    }
    it->second = {it->first.c_str(), invoke, parameters, sizes, shared};
}
