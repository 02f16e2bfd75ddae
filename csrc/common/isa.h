// The instruction-set level: what the binary holds, what the machine can run, what is in use.

#pragma once

namespace pylandscape {

enum class Isa { baseline, avx2, avx512 };

inline constexpr int kIsaLevels = 3;

const char* isa_name(Isa level);

// Whether this machine can run `level`.
bool isa_supported(Isa level);

// The level in use. The first call chooses: PYLANDSCAPE_ISA if it is set, else the highest that the
// machine can run. Throws std::invalid_argument if the variable names no level that it can.
Isa isa();

// Whether the level in use may work with the processor's matrix tiles in bfloat16 (AMX). The first
// call asks the operating system for their state.
bool tiles_supported();

// Uses the level called `name` from now on. Throws like isa().
void set_isa(const char* name);

}  // namespace pylandscape
