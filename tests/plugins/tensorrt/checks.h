// Checks of the test programs, and their cases by name.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace checks {

inline std::vector<std::pair<std::string, std::function<void()>>>& cases() {
  static std::vector<std::pair<std::string, std::function<void()>>> all;
  return all;
}

struct Case {
  Case(const char* name, std::function<void()> body) { cases().emplace_back(name, std::move(body)); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::printf("%s:%d: %s\n", file, line, what.c_str());
  std::fflush(stdout);
  std::exit(1);
}

// Runs all cases, and says which have passed.
inline int run() {
  for (const auto& [name, body] : cases()) {
    body();
    std::printf("passed: %s\n", name.c_str());
    std::fflush(stdout);
  }
  return cases().empty();
}

}  // namespace checks

#define CASE(name)                                       \
  static void name();                                    \
  static const checks::Case case_of_##name(#name, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) checks::fail(__FILE__, __LINE__, #condition)
// That the text holds a part.
#define CHECK_SAYS(text, part)                           \
  if (std::string(text).find(part) == std::string::npos) \
  checks::fail(__FILE__, __LINE__, "\"" + std::string(text) + "\" does not say \"" + std::string(part) + "\"")
