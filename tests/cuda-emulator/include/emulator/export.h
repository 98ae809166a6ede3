// KERNEL_EXPORT(name): registers a kernel with the runtime under its name, with a trampoline that unpacks the driver API's
// array of argument pointers and the size of every parameter.
#pragma once
#include <type_traits>
#include <utility>

#include "emulator/language.h"

namespace emu {
// Any address inside of the calling OS thread's copy of this module's __shared__ variables.
__attribute__((no_sanitize("thread"))) static void* shared_probe() {
    static thread_local char probe;
    return &probe;
}

template <auto Kernel> struct Exported;
template <class... A, void (*Kernel)(A...)> struct Exported<Kernel> {
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void unpack(void** args, std::index_sequence<I...>) {
        Kernel(*static_cast<std::remove_reference_t<std::remove_cv_t<A>>*>(args[I])...);
    }
    static void invoke(void** args) { unpack(args, std::index_sequence_for<A...>{}); }
    __attribute__((no_sanitize("thread"))) static int enlist(const char* name) {
        static const unsigned sizes[] = {(unsigned)sizeof(A)..., 0};
        emu_register(name, &invoke, (int)sizeof...(A), sizes, &shared_probe);
        return 0;
    }
};
}  // namespace emu
#define KERNEL_EXPORT(name) static int emu_exported_##name = emu::Exported<&name>::enlist(#name)
