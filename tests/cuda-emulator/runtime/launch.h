// Runs a kernel's grid: blocks in an order that the settings choose, on one or two OS threads.
#pragma once
#include "block.h"

namespace emu {
// Runs every block; false if there was a finding. Callers hold the driver's lock.
bool run_grid(Launch& launch);
// In a cooperative launch of the checking flavour one block runs at a time; this lets the others go on.
void pass_baton();
}  // namespace emu
