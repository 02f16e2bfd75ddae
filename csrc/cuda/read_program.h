// The program that the planner wrote, checked for being whole.

#pragma once

#include <type_traits>
#include <vector>

#include "common/check.h"
#include "cuda/program.h"

namespace pylandscape::cuda {

struct ProgramNumbers {
  const Head* head;
  const Value* values;
  std::vector<const Step*> steps;
};

inline ProgramNumbers read_program(const Int* numbers, Int count) {
  ProgramNumbers program{};
  const Int* next = numbers;
  const auto take = [&](auto*& records, Int how_many) {
    using Record = std::remove_reference_t<decltype(*records)>;
    records = reinterpret_cast<Record*>(next);
    next += how_many * static_cast<Int>(sizeof(Record) / sizeof(Int));
    require(next <= numbers + count, "evaluate_points: plan must be whole, got ", count,
            " numbers");
  };
  take(program.head, 1);
  take(program.values, program.head->values);
  for (Int s = 0; s < program.head->steps; ++s) {
    const Step* step = nullptr;
    take(step, 1);
    program.steps.push_back(step);
    next += step->length - 2;
  }
  require(next == numbers + count, "evaluate_points: plan must end with its last step");
  return program;
}

}  // namespace pylandscape::cuda
