// Errors of the operators. Shapes, types and devices were checked by the wrappers in _ops/, above
// dispatch; what is checked here are values that only a kernel reads.

#pragma once

#include <sstream>
#include <stdexcept>

namespace pylandscape {

// Throws what Python sees as a ValueError, its message put together from `parts`.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace pylandscape
