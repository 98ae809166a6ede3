#pragma once
#define EMU_RUNTIME 1
#include "emulator/hopper.h"
struct EmuK_ { const char* name; EmuInvoke inv; int nargs; const unsigned* sizes; };
extern "C" { EmuK_* emu_find(const char*); int emu_launch(EmuK_*,unsigned,unsigned,unsigned,unsigned,unsigned,unsigned,unsigned,void**,int); void emu_alloc_add(void*,size_t); void emu_alloc_del(void*); void emu_config(int,uint64_t,int,int,int); const char* emu_last_error(); void emu_clear_error(); }
