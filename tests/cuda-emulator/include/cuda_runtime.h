// Stands in for the tool kit header of this name: kernels compiled by g++ get the emulated language.
#pragma once
#include "emulator/cuda.h"
