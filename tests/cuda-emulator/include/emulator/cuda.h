// CUDA C++ as g++ sees it: everything that a kernel may use, on top of the emulator's runtime.
#pragma once
#include "emulator/language.h"
#include "emulator/math.h"
#include "emulator/bf16.h"
#include "emulator/warp.h"
#include "emulator/atomics.h"
#include "emulator/export.h"
