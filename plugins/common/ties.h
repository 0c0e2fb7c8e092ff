// What every form of an op takes for equal, for nothing, and for out of range: vtexport/pruning/ties.py in C++.
#ifndef VTX_COMMON_TIES_H
#define VTX_COMMON_TIES_H

namespace vtx {

constexpr float kStep = 1.0f / 1048576;     // cosines, and loadings that decide a group, are told apart from here on
constexpr float kShift = 12.0f;             // floats from 8 to 16 are multiples of kStep: adding this rounds a cosine
constexpr double kLeverage = 1.0 / 524288;  // the same for leverages times the rank
constexpr float kAlike = 1.0f / 524288;     // a cosine has to exceed a threshold by this
constexpr float kParallel = 1 - 1.0f / 65536;  // a cosine above this is 1
constexpr double kShare = 1e-6;                // a summed share that falls short of a threshold by less has reached it
constexpr double kRounding = 1.0 / 68719476736.0;  // doubles that decide an order are told apart from here on
constexpr double kWeakest = 1e-5;                  // directions with a smaller eigenvalue, over the largest, are none
constexpr double kWeakestGroup = 1e-4;             // the same where a direction's own entries decide
constexpr double kCentred = 1e-9;                  // nor with less than this share of the energy from before a centring
constexpr float kShortest = 0x1p-60f, kLongest = 0x1p120f;  // squares of the longest row that floats can work with

}  // namespace vtx

#endif
