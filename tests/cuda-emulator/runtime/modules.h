// Kernel modules: one shared object per kernel file, opened when the driver starts, whose initialisers register their kernels.
#pragma once
#include "block.h"

namespace emu {
// Opens the modules beside this library, once.
void open_modules();
Kernel* find_kernel(const char* name);
// The calling OS thread's copy of the __shared__ variables of the kernel's module.
Range static_shared_of(const Kernel& kernel);
// Whether memory belongs to a module's image: constants, tables, literals.
bool constant_data(const void* p, size_t bytes);
}  // namespace emu
